"""The paper's two building blocks (Figure 5), its three shortcuts (section 3.3), and the gated one of its yardstick."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.models.conv import Conv

Norm = Callable[..., nn.Module]
GATE_BIAS = -2.0  # Between the -1 and -3 that the highway networks' authors start from.


def identity_shortcut(x: jax.Array, filters: int, strides: int) -> jax.Array:
    """Option A: (N, H, W, I) to (N, H/strides, W/strides, filters) without parameters.

    Every ``strides``-th pixel, with zeros for the new channels. The paper does not say where the zeros go; they are
    split between both ends of the channel axis because the public CIFAR-10 checkpoints have them there. Any other
    place is the same network with its channels renamed.
    """
    extra = filters - x.shape[-1]
    x = x[:, ::strides, ::strides, :]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))


class Block(nn.Module):
    """What both blocks share: the fields, and the addition of the shortcut to the residual branch.

    ``shortcut`` is "A" (identity, zero-padded where channels grow), "B" (1x1 projection where the shape changes), "C"
    (projection everywhere), None (the plain twin: no shortcut at all) or "gated" (a highway network's: see ``gate``).
    ``norm`` makes a batch normalisation.
    ``zero_init_last_bn`` starts the last scale of the residual branch at 0, so that the block starts as its shortcut.
    """

    filters: int
    strides: int
    shortcut: str | None
    norm: Norm
    stride_placement: str = "v1"
    zero_init_last_bn: bool = False
    dtype: jnp.dtype = jnp.float32

    expansion = 1

    def conv(self, filters: int, size: int, strides: int, name: str) -> Conv:
        return Conv(filters, size, strides, dtype=self.dtype, name=name)

    def last_norm(self, name: str) -> nn.Module:
        init = nn.initializers.zeros if self.zero_init_last_bn else nn.initializers.ones
        return self.norm(name=name, scale_init=init)

    def add_shortcut(self, x: jax.Array, residual: jax.Array) -> jax.Array:
        if self.shortcut is None:
            return residual
        transform = self.gate(x) if self.shortcut == "gated" else None
        filters = self.filters * self.expansion
        changes_shape = self.strides != 1 or x.shape[-1] != filters
        if self.shortcut == "C" or (self.shortcut == "B" and changes_shape):
            x = self.conv(filters, 1, self.strides, name="projection_conv")(x)
            x = self.norm(name="projection_bn")(x)
        elif changes_shape:
            x = identity_shortcut(x, filters, self.strides)
        return x + residual if transform is None else transform * residual + (1 - transform) * x

    def gate(self, x: jax.Array) -> jax.Array:
        """How much of each output is the residual branch, in (0, 1); the rest is the shortcut, as in option A.

        The paper's section 2 sets its shortcuts against these: data-dependent, with parameters, and able to close
        (Srivastava et al., arXiv 1505.00387). As in He et al., arXiv 1603.05027, section 3.1, the gate is a 1x1
        convolution and nothing else differs from the residual network. Its bias starts below 0, so that signals pass.
        """
        bias = nn.initializers.constant(GATE_BIAS)
        filters = self.filters * self.expansion
        conv = Conv(filters, 1, self.strides, use_bias=True, bias_init=bias, dtype=self.dtype, name="gate_conv")
        return nn.sigmoid(conv(x))


class BasicBlock(Block):
    """Two 3x3 convolutions (Figure 5, left). (N, H, W, I) to (N, H/strides, W/strides, filters)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.filters, 3, self.strides, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.conv(self.filters, 3, 1, name="conv2")(y)
        y = self.last_norm(name="bn2")(y)
        return nn.relu(self.add_shortcut(x, y))


class BottleneckBlock(Block):
    """1x1, 3x3 and 1x1 convolutions (Figure 5, right). (N, H, W, I) to (N, H/strides, W/strides, 4 * filters).

    The paper strides in the first 1x1 convolution ("v1"); most later code strides in the 3x3 one ("v1.5").
    """

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        first, middle = (self.strides, 1) if self.stride_placement == "v1" else (1, self.strides)
        y = self.conv(self.filters, 1, first, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.conv(self.filters, 3, middle, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y))
        y = self.conv(self.filters * self.expansion, 1, 1, name="conv3")(y)
        y = self.last_norm(name="bn3")(y)
        return nn.relu(self.add_shortcut(x, y))
