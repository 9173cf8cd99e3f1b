"""The paper's two building blocks (Figure 5), made of parts. Those of its sequel are in ``preactivation``."""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax

from resnet_jax.errors import UserError
from resnet_jax.models.shortcuts import Factory, Shortcut, none


class Block(nn.Module):
    """What all blocks share: the parts, and the end of the block.

    A new block is a subclass whose compact ``__call__(x, drop_path=None)`` makes the residual branch, (N, H, W, I) to
    (N, H / strides, W / strides, O), and returns ``self.join(x, residual, drop_path)``. Fields of its own have defaults
    and become arguments of ``create_model``.

    filters: base filters of the stage.
    strides: of the block.
    conv: makes a ``Conv``: ``conv(filters, size, strides, groups=..., name=...)``.
    norm: makes a normalisation: ``norm(name=..., scale_init=...)``.
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

    def check(self) -> None:
        """Raises UserError where its fields do not go together; called when a network of such blocks is made."""
        if self.zero_init_last_bn and self.shortcut is none:
            raise UserError(
                "zero_init_last_bn is for blocks with a shortcut: without one they would give 0, through which no "
                "gradient passes; set it to False"
            )

    def last_norm(self, name: str) -> Any:
        init = nn.initializers.zeros if self.zero_init_last_bn else nn.initializers.ones
        return self.norm(name=name, scale_init=init)

    def join(self, x: jax.Array, residual: jax.Array, drop_path: jax.Array | float | None) -> jax.Array:
        """The block's output of its input and its residual branch, which ``weighted`` comes before."""
        residual = self.weighted(residual, drop_path)
        return self.activation(self.shortcut(x, residual, self.strides, self.conv, self.norm))

    def weighted(self, residual: jax.Array, drop_path: jax.Array | float | None) -> jax.Array:
        """The residual branch as it is added: after attention, and in training with stochastic depth.

        With ``drop_path``, a probability below 1, whole residual branches are left out at random, an example at a time,
        and those kept are scaled up to the same mean (stochastic depth: Huang et al., arXiv 1603.09382; with the
        scaling in training rather than in evaluation). The random numbers are those of an rng called "drop_path".
        """
        if self.attention is not None:
            residual = self.attention(name="attention")(residual)
        if drop_path is not None:
            keep = jax.random.bernoulli(self.make_rng("drop_path"), 1 - drop_path, (residual.shape[0], 1, 1, 1))
            residual *= (keep / (1 - drop_path)).astype(residual.dtype)
        return residual


class BasicBlock(Block):
    """Two 3x3 convolutions (Figure 5, left). (N, H, W, I) to (N, H/strides, W/strides, filters).

    antialias: one of ``pooling.ANTIALIAS`` or another factory of that kind, for what a stride would do after the first
        convolution; None for the stride.
    """

    dense: ClassVar[str] = "container"
    responses = (("bn1", "conv1"), ("bn2", "conv2"))

    antialias: Factory | None = None

    @nn.compact
    def __call__(self, x: jax.Array, drop_path: jax.Array | float | None = None) -> jax.Array:
        self.check()  # The network may have been made by hand.
        pooled = self.antialias is not None and self.strides > 1
        y = self.conv(self.filters, 3, 1 if pooled else self.strides, name="conv1")(x)
        y = self.activation(self.norm(name="bn1")(y))
        if pooled and self.antialias is not None:
            y = self.antialias(name="antialias")(y)
        y = self.conv(self.filters, 3, 1, name="conv2")(y)
        y = self.last_norm(name="bn2")(y)
        return self.join(x, y, drop_path)


class BottleneckBlock(Block):
    """1x1, 3x3 and 1x1 convolutions (Figure 5, right). (N, H, W, I) to (N, H/strides, W/strides, 4 * filters).

    stride_placement: the paper strides in the first 1x1 convolution ("v1"); most later code strides in the 3x3 one
        ("v1.5").
    cardinality: groups of the 3x3 convolution (ResNeXt: Xie et al., arXiv 1611.05431, Figure 3c).
    base_width: channels of each group where ``filters`` is 64; they grow with it. With one group and 128 it is a wide
        ResNet's (Zagoruyko and Komodakis, arXiv 1605.07146).
    reduce_first: by how much fewer filters the first convolution has than the second (SENet-154: 2).
    antialias: one of ``pooling.ANTIALIAS`` or another factory of that kind, for what a stride would do after the 3x3
        convolution, in place of "v1.5"; None for the stride.
    """

    dense: ClassVar[str] = "container"
    responses = (("bn2", "conv2"),)

    stride_placement: str = "v1"
    cardinality: int = 1
    base_width: int = 64
    reduce_first: int = 1
    antialias: Factory | None = None

    def check(self) -> None:
        """Raises UserError."""
        super().check()
        if self.antialias is not None and self.stride_placement == "v1":
            raise UserError(
                "antialias is for bottlenecks that stride in their 3x3 convolution; use stride_placement v1.5"
            )
        _, reduced = self._inner_filters()
        if not reduced or reduced % self.cardinality:
            raise UserError(
                f"{reduced} filters are not divisible by cardinality {self.cardinality}; use a larger width"
            )

    def _inner_filters(self) -> tuple[int, int]:
        """Of the 3x3 convolution, and of the one before it."""
        inner = max(1, self.filters * self.base_width // 64) * self.cardinality
        return inner, inner // self.reduce_first

    @nn.compact
    def __call__(self, x: jax.Array, drop_path: jax.Array | float | None = None) -> jax.Array:
        self.check()  # The network may have been made by hand.
        first, middle = (self.strides, 1) if self.stride_placement == "v1" else (1, self.strides)
        pooled = self.antialias is not None and middle > 1
        inner, reduced = self._inner_filters()
        y = self.conv(reduced, 1, first, name="conv1")(x)
        y = self.activation(self.norm(name="bn1")(y))
        y = self.conv(inner, 3, 1 if pooled else middle, groups=self.cardinality, name="conv2")(y)
        y = self.activation(self.norm(name="bn2")(y))
        if pooled and self.antialias is not None:
            y = self.antialias(name="antialias")(y)
        y = self.conv(4 * self.filters, 1, 1, name="conv3")(y)
        y = self.last_norm(name="bn3")(y)
        return self.join(x, y, drop_path)
