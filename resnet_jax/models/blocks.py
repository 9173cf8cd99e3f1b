"""The paper's two building blocks (Figure 5), made of parts."""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax

from resnet_jax.models.shortcuts import Factory, Shortcut


class Block(nn.Module):
    """What all blocks share: the parts, and the end of the block.

    A new block is a subclass whose compact ``__call__(x, drop_path=None)`` makes the residual branch, (N, H, W, I) to
    (N, H / strides, W / strides, O), and returns ``self.join(x, residual, drop_path)``. Fields of its own have defaults
    and become arguments of ``create_model``.

    filters: base filters of the stage.
    strides: of the block.
    conv: makes a ``Conv``: ``conv(filters, size, strides, groups=..., name=...)``.
    norm: makes a batch normalisation: ``norm(name=..., scale_init=...)``.
    shortcut: see ``shortcuts``.
    activation: a function of an array, an element at a time.
    attention: makes a module of (N, H, W, C) to the same, which rescales the residual branch: ``attention(name=...)``;
        None for none.
    zero_init_last_bn: start the last scale of the residual branch at 0, so that the block starts as its shortcut.
    """

    responses: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Each of its batch normalisations that follows a 3x3 convolution, with the name of that layer (Figure 7)."""

    filters: int
    strides: int
    conv: Factory
    norm: Factory
    shortcut: Shortcut
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    attention: Factory | None = None
    zero_init_last_bn: bool = False

    def last_norm(self, name: str) -> Any:
        init = nn.initializers.zeros if self.zero_init_last_bn else nn.initializers.ones
        return self.norm(name=name, scale_init=init)

    def join(self, x: jax.Array, residual: jax.Array, drop_path: jax.Array | float | None) -> jax.Array:
        """The block's output of its input and its residual branch.

        With ``drop_path``, a probability below 1, whole residual branches are left out at random, an example at a time,
        and those kept are scaled up to the same mean (stochastic depth: Huang et al., arXiv 1603.09382; with the
        scaling in training rather than in evaluation). The random numbers are those of an rng called "drop_path".
        """
        if self.attention is not None:
            residual = self.attention(name="attention")(residual)
        if drop_path is not None:
            keep = jax.random.bernoulli(self.make_rng("drop_path"), 1 - drop_path, (x.shape[0], 1, 1, 1))
            residual *= (keep / (1 - drop_path)).astype(residual.dtype)
        return self.activation(self.shortcut(x, residual, self.strides, self.conv, self.norm))


class BasicBlock(Block):
    """Two 3x3 convolutions (Figure 5, left). (N, H, W, I) to (N, H/strides, W/strides, filters)."""

    dense: ClassVar[str] = "container"
    responses = (("bn1", "conv1"), ("bn2", "conv2"))

    @nn.compact
    def __call__(self, x: jax.Array, drop_path: jax.Array | float | None = None) -> jax.Array:
        y = self.conv(self.filters, 3, self.strides, name="conv1")(x)
        y = self.activation(self.norm(name="bn1")(y))
        y = self.conv(self.filters, 3, 1, name="conv2")(y)
        y = self.last_norm(name="bn2")(y)
        return self.join(x, y, drop_path)


class BottleneckBlock(Block):
    """1x1, 3x3 and 1x1 convolutions (Figure 5, right). (N, H, W, I) to (N, H/strides, W/strides, 4 * filters).

    The paper strides in the first 1x1 convolution (stride_placement "v1"); most later code strides in the 3x3 one
    ("v1.5").
    """

    dense: ClassVar[str] = "container"
    responses = (("bn2", "conv2"),)

    stride_placement: str = "v1"

    @nn.compact
    def __call__(self, x: jax.Array, drop_path: jax.Array | float | None = None) -> jax.Array:
        first, middle = (self.strides, 1) if self.stride_placement == "v1" else (1, self.strides)
        y = self.conv(self.filters, 1, first, name="conv1")(x)
        y = self.activation(self.norm(name="bn1")(y))
        y = self.conv(self.filters, 3, middle, name="conv2")(y)
        y = self.activation(self.norm(name="bn2")(y))
        y = self.conv(4 * self.filters, 1, 1, name="conv3")(y)
        y = self.last_norm(name="bn3")(y)
        return self.join(x, y, drop_path)
