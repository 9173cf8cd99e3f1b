"""What becomes of a block's input: the paper's three shortcuts (section 3.3), none, and a highway network's.

A shortcut is a function that a block calls within its compact method::

    shortcut(x, residual, strides, conv, norm) -> Array

``x`` (N, H, W, I) is the block's input, ``residual`` (N, H / strides, W / strides, O) what its layers have made of it,
and the result, of ``residual``'s shape, is both joined. Layers of its own it makes by ``conv(filters, size, strides,
name=...)`` and ``norm(name=...)``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.models.pooling import MeanPool

Factory = Callable[..., Callable[[jax.Array], jax.Array]]
Shortcut = Callable[[jax.Array, jax.Array, int, Factory, Factory], jax.Array]

GATE_BIAS = -2.0  # Between the -1 and -3 that the highway networks' authors start from.


def class_of(factory: Any) -> Any:
    """The class of which a factory is a partial, or which it is."""
    return factory.func if isinstance(factory, partial) else factory


def none(x: jax.Array, residual: jax.Array, strides: int, conv: Factory, norm: Factory) -> jax.Array:
    """A plain network's: there is none."""
    return residual


def identity(x: jax.Array, residual: jax.Array, strides: int, conv: Factory, norm: Factory) -> jax.Array:
    """Option A: the identity, zero-padded where channels grow."""
    return padded(x, residual.shape[-1], strides) + residual


def projection(x: jax.Array, residual: jax.Array, strides: int, conv: Factory, norm: Factory) -> jax.Array:
    """Option B: a 1x1 projection where the shape changes, the identity elsewhere."""
    if not changes(x, residual, strides):
        return x + residual
    return projection_everywhere(x, residual, strides, conv, norm)


def projection_everywhere(x: jax.Array, residual: jax.Array, strides: int, conv: Factory, norm: Factory) -> jax.Array:
    """Option C: every shortcut is a 1x1 projection."""
    x = conv(residual.shape[-1], 1, strides, name="projection_conv")(x)
    return norm(name="projection_bn")(x) + residual


def pooled_projection(x: jax.Array, residual: jax.Array, strides: int, conv: Factory, norm: Factory) -> jax.Array:
    """Option B whose projection reads means of 2x2 pixels, where it would leave three of four out.

    "ResNet-D" of He et al., "Bag of Tricks for Image Classification with Convolutional Neural Networks" (arXiv
    1812.01187, Figure 2c).
    """
    if not changes(x, residual, strides):
        return x + residual
    if strides > 1:
        x = MeanPool(name="projection_pool")(x)
    x = conv(residual.shape[-1], 1, 1, name="pooled_projection_conv")(x)
    return norm(name="pooled_projection_bn")(x) + residual


def wide_projection(x: jax.Array, residual: jax.Array, strides: int, conv: Factory, norm: Factory) -> jax.Array:
    """Option B with 3x3 where it strides (SENet-154: Hu et al., arXiv 1709.01507, appendix)."""
    if not changes(x, residual, strides):
        return x + residual
    x = conv(residual.shape[-1], 1 if strides == 1 else 3, strides, name="projection_conv")(x)
    return norm(name="projection_bn")(x) + residual


def changes(x: jax.Array, residual: jax.Array, strides: int) -> bool:
    """Whether a block's output has another shape than its input."""
    return strides > 1 or x.shape[-1] != residual.shape[-1]


def gated(x: jax.Array, residual: jax.Array, strides: int, conv: Factory, norm: Factory) -> jax.Array:
    """A highway network's: a gate in (0, 1) says how much of each output is the residual; the rest is option A's.

    The paper's section 2 sets its shortcuts against these: data-dependent, with parameters, and able to close
    (Srivastava et al., arXiv 1505.00387). As in He et al., arXiv 1603.05027, section 3.1, the gate is a 1x1
    convolution and nothing else differs from the residual network. Its bias starts below 0, so that signals pass.
    """
    filters = residual.shape[-1]
    bias = nn.initializers.constant(GATE_BIAS)
    transform = nn.sigmoid(conv(filters, 1, strides, use_bias=True, bias_init=bias, name="gate_conv")(x))
    x = padded(x, filters, strides)
    return transform * residual + (1 - transform) * x


def padded(x: jax.Array, filters: int, strides: int) -> jax.Array:
    """(N, H, W, I) to (N, H / strides, W / strides, filters) without parameters.

    Every ``strides``-th pixel, with zeros for the new channels. The paper does not say where the zeros go; they are
    split between both ends of the channel axis because the public CIFAR-10 checkpoints have them there. Any other
    place is the same network with its channels renamed.
    """
    extra = filters - x.shape[-1]
    if strides == 1 and not extra:
        return x
    x = x[:, ::strides, ::strides, :]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))


SHORTCUTS: dict[str, Shortcut] = {
    "A": identity,
    "B": projection,
    "C": projection_everywhere,
    "none": none,
    "gated": gated,
    "D": pooled_projection,
    "3x3": wide_projection,
}
