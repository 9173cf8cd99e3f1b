"""Normalisations that do not depend on the rest of the batch: the ``norm`` of networks for small batches.

Each is called with ``name``, ``dtype`` and maybe ``scale_init``, and keeps its parameters and statistics in float32.
Two of them are their own activation; a network with one of these has the identity for ``activation``.
"""

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.models.layers import GlobalMean


class GroupNorm(nn.Module):
    """Group normalisation of (N, H, W, C) (Wu and He, arXiv 1803.08494, section 3.1).

    groups: of channels, whose values at all positions of an image share mean and variance. Where it does not divide C,
        their greatest common divisor is the number of groups.
    """

    dense: ClassVar[str] = "mask_output"
    of_batches: ClassVar[bool] = False

    groups: int = 32
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        centred, variance = _moments(x, self.groups)
        return (centred * (jax.lax.rsqrt(variance + self.epsilon) * scale) + bias).astype(self.dtype)


class EvoNormS0(nn.Module):
    """EvoNorm-S0, normalisation and activation in one (Liu et al., arXiv 2004.02967, Table 2).

    x sigmoid(v x), divided by the standard deviation of its group of channels as in ``GroupNorm``, scaled and shifted.
    """

    dense: ClassVar[str] = "mask_output"
    of_batches: ClassVar[bool] = False

    groups: int = 32
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        slope = self.param("v", nn.initializers.ones, (channels,), jnp.float32)
        _, variance = _moments(x, self.groups)
        x = x.astype(jnp.float32)
        gated = x * nn.sigmoid(slope * x) * jax.lax.rsqrt(variance + self.epsilon)
        return (gated * scale + bias).astype(self.dtype)


class FilterResponseNorm(nn.Module):
    """Filter response normalisation with its thresholded linear unit (Singh and Krishnan, arXiv 1911.09737).

    Each channel of an image is divided by its root mean square over the positions, scaled and shifted (equations 1 and
    2), and cut off below at a learnt threshold (equation 4).
    """

    dense: ClassVar[str] = "mask_output"
    of_batches: ClassVar[bool] = False

    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        threshold = self.param("tau", nn.initializers.zeros, (channels,), jnp.float32)
        x = x.astype(jnp.float32)
        square = GlobalMean(name="mean_square")(x**2)[:, None, None, :]
        return jnp.maximum(x * jax.lax.rsqrt(square + self.epsilon) * scale + bias, threshold).astype(self.dtype)


def _moments(x: jax.Array, groups: int) -> tuple[jax.Array, jax.Array]:
    """``x`` less its group's mean, (N, H, W, C), and the group's variance (N, 1, 1, C), both float32."""
    x = x.astype(jnp.float32)
    x -= _of_groups(GlobalMean(name="mean")(x), groups)
    return x, _of_groups(GlobalMean(name="variance")(x**2), groups)


def _of_groups(means: jax.Array, groups: int) -> jax.Array:
    """The mean of each channel's group, (N, 1, 1, C), of the channels' means (N, C)."""
    channels = means.shape[-1]
    of_one = channels // math.gcd(groups, channels)
    grouped = means.reshape(len(means), -1, of_one).mean(axis=-1)
    return jnp.repeat(grouped, of_one, axis=-1)[:, None, None, :]
