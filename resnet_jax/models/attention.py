"""Attention over channels: modules of (N, H, W, C) to the same, which rescale each channel by what the means say."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.models.layers import GlobalMean, he_normal


class SqueezeExcitation(nn.Module):
    """Scales each channel by a function of the means of all channels (Hu et al., arXiv 1709.01507, section 3).

    ratio: of the hidden layer's channels to C; they are rounded to a multiple of 8, of at least 8.
    """

    dense: ClassVar[str] = "container"

    ratio: float = 1 / 16
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        hidden = max(8, int(channels * self.ratio + 4) // 8 * 8)
        y = GlobalMean(name="mean")(x)  # (N, C)
        y = nn.relu(nn.Dense(hidden, kernel_init=he_normal, name="fc1")(y))
        scale = nn.sigmoid(nn.Dense(channels, kernel_init=he_normal, name="fc2")(y))
        return x * scale[:, None, None, :].astype(self.dtype)


class EfficientChannelAttention(nn.Module):
    """Scales each channel by a function of the means of its neighbours (Wang et al., arXiv 1910.03151, section 3.2).

    The function is a convolution along the channels, whose size grows with the logarithm of C (equation 12, with
    gamma 2 and b 1, rounded up to an odd size of at least 3).
    """

    dense: ClassVar[str] = "container"

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        size = int((math.log2(channels) + 1) / 2)
        size = max(3, size + 1 - size % 2)
        scale = nn.sigmoid(_ChannelConv(size, name="conv")(GlobalMean(name="mean")(x)))
        return x * scale[:, None, None, :].astype(self.dtype)


class _ChannelConv(nn.Module):
    """A convolution of (N, C), zero-padded to the same shape, with one kernel of an odd ``size`` along the channels."""

    dense: ClassVar[str] = "pointwise"

    size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", he_normal, (self.size, 1, 1), jnp.float32)
        padded = jnp.pad(x, ((0, 0), (self.size // 2, self.size // 2)))
        # A handful of products: a loop's weight gradients are slow as convolutions on CPUs (kernels.convolution).
        return jnp.stack([kernel[i, 0, 0] * padded[:, i : i + x.shape[1]] for i in range(self.size)]).sum(axis=0)


ATTENTION: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "se": SqueezeExcitation,
    "eca": EfficientChannelAttention,
}
