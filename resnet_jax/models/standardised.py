"""Convolutions with standardised weights."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from resnet_jax.models.layers import Conv


class StandardisedConv(Conv):
    """A convolution whose weights have mean 0 and variance 1 over each output channel's inputs.

    Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization" (arXiv 1903.10520),
    as "Big Transfer" (arXiv 1912.11370, section 3.1) uses it with group normalisation.

    epsilon: added to the variance; BiT's.
    """

    dense: ClassVar[str] = "mask_input"

    epsilon: float = 1e-8

    def weights(self, kernel: jax.Array) -> jax.Array:
        inputs = (0, 1, 2)
        centred = kernel - jnp.mean(kernel, axis=inputs)
        return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=inputs) + self.epsilon)
