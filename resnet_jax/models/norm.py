"""Batch normalisation over the global batch or over groups of it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.errors import UserError


class BatchNorm(nn.Module):
    """Batch normalisation of (N, H, W, C) per channel, with statistics and parameters in float32.

    Under ``jit`` with a sharded batch the statistics are those of the whole batch. ``group_size`` limits them to that
    many consecutive examples, which gives exactly the per-device statistics of the paper's training (32 images a GPU
    on ImageNet, 64 on CIFAR-10); the running statistics then follow the mean over the groups. The running variance is
    the biased one.

    A training batch of at most ``group_size`` is one group. Raises UserError when a larger one is not divisible by it.
    """

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
        group = min(self.group_size or batch, batch)
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
