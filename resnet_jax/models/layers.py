"""The layers that the networks are made of: convolution, batch normalisation, pooling, dropout, mean over positions.

Other normalisations are in ``norms``, other pooling and convolutions in ``pooling`` and ``standardised``.

Every module class of a network that may be scored on whole photographs (``evaluation.dense``) says, as ``dense``, what
has to be done so that it computes on a photograph in the corner of a larger canvas what it would on the photograph:

- "mask_input": it reads beyond the photograph's edge and expects zeros there.
- "reflect_input": it reads beyond the photograph's edge and expects the photograph reflected at its last pixels.
- "mask_output": it writes other numbers than zero beyond the edge.
- "masked_max": it takes maxima over positions, and beyond the edge there is to be nothing.
- "masked_mean": it averages over positions, of which only the photograph's count.
- "masked_window_mean": each of its windows has the mean of the positions inside the photograph.
- "rounds_down": it halves maps without the last row and column of those of an odd size, where all others round up.
- "pointwise": it computes each position by itself, or has none.
- "container": it only calls other modules, functions of each position by itself, and strided slices. What pools or
  averages has to be a module.

A subclass inherits what its parent says, so a class that is to be subclassed should not say it.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.errors import UserError
from resnet_jax.kernels import PLAIN, Kernels

# He et al., "Delving Deep into Rectifiers" (the paper's reference [13]): normal, standard deviation sqrt(2 / fan in).
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class Conv(nn.Module):
    """A convolution of (N, H, W, I) to (N, ceil(H / strides), ceil(W / strides), filters), for odd sizes.

    It is padded by ``dilation * (size // 2)`` on every side: the padding is explicit because SAME shifts stride-2
    windows by a pixel against the published networks. There is no bias by default, since batch normalisation follows.
    The kernel is stored in float32 as (size, size, I / groups, filters) and cast to ``dtype`` for the computation.
    ``groups`` must divide I and ``filters``.
    """

    dense: ClassVar[str] = "mask_input"

    filters: int
    size: int
    strides: int = 1
    groups: int = 1
    dilation: int = 1
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    kernels: Kernels = PLAIN
    kernel_init: nn.initializers.Initializer = he_normal

    def weights(self, kernel: jax.Array) -> jax.Array:
        """What it convolves with, of its parameter: both (size, size, I / groups, filters), float32."""
        return kernel

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.filters)
        kernel = self.weights(self.param("kernel", self.kernel_init, shape, jnp.float32))
        pad = (self.dilation * (self.size // 2),) * 2
        y = self.kernels.convolution(
            x.astype(self.dtype), kernel.astype(self.dtype), self.strides, (pad, pad), self.groups, self.dilation
        )
        if self.use_bias:
            y += self.param("bias", self.bias_init, (self.filters,), jnp.float32).astype(self.dtype)
        return y


class BatchNorm(nn.Module):
    """Batch normalisation of (N, H, W, C) per channel, with statistics and parameters in float32.

    Under ``jit`` with a sharded batch the statistics are those of the whole batch. ``group_size`` limits them to that
    many consecutive examples, which gives exactly the per-device statistics of the paper's training (32 images a GPU
    on ImageNet, 64 on CIFAR-10); the running statistics then follow the mean over the groups. The running variance is
    the biased one. ``momentum`` is how much of the running statistics each training batch keeps.

    A training batch of at most ``group_size`` is one group. Raises UserError when a larger one is not divisible by it.
    """

    dense: ClassVar[str] = "mask_output"
    of_batches: ClassVar[bool] = True
    """Whether it has "batch_stats", and so takes ``use_running_average``."""

    use_running_average: bool
    group_size: int | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        if self.use_running_average:
            factor = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
            offset = bias - running_mean.value * factor
            return (x * factor + offset).astype(self.dtype)

        batch = x.shape[0]
        group = min(self.group_size, batch) if self.group_size else batch
        if batch % group:
            raise UserError(
                f"a training batch of {batch} is not divisible by bn_group_size {group}; change one of the two"
            )
        grouped = x.astype(jnp.float32).reshape(batch // group, group, *x.shape[1:])
        mean = jnp.mean(grouped, axis=(1, 2, 3), keepdims=True)
        # One pass over the activations for both moments; rounding can push the difference below zero.
        var = jnp.maximum(jnp.mean(grouped**2, axis=(1, 2, 3), keepdims=True) - mean**2, 0.0)
        if not self.is_initializing():
            keep = self.momentum
            running_mean.value = keep * running_mean.value + (1 - keep) * mean.mean(axis=(0, 1, 2, 3))
            running_var.value = keep * running_var.value + (1 - keep) * var.mean(axis=(0, 1, 2, 3))
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        normalised = grouped * factor + (bias - mean * factor)
        return normalised.reshape(x.shape).astype(self.dtype)


class MaxPool(nn.Module):
    """The max-pool of ``kernels``: 3x3 with stride 2, (N, H, W, C) to (N, ceil(H / 2), ceil(W / 2), C)."""

    dense: ClassVar[str] = "masked_max"

    kernels: Kernels = PLAIN

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.kernels.max_pool(x)


class Dropout(nn.Module):
    """Zeros a part ``rate`` of the units at random, by an rng called "dropout", and scales the others to the same mean.

    The numbers of ``flax.linen.Dropout``, which cannot be used on a mesh of explicit axes.
    """

    dense: ClassVar[str] = "pointwise"

    rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.deterministic:
            return x
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.rate, x.shape)
        sharding = jax.typeof(x).sharding
        if any(sharding.spec):  # Only where the axes of the mesh are explicit.
            keep = jax.reshard(keep, sharding)
        return jax.lax.select(keep, x / (1.0 - self.rate), jnp.zeros_like(x))


class GlobalMean(nn.Module):
    """The mean over all positions, (N, H, W, C) to (N, C) in float32."""

    dense: ClassVar[str] = "masked_mean"

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))
