"""2-D convolution with explicit padding, and gradients that stay fast inside loops on CPU.

XLA's CPU backend rewrites a convolution into the form its fast kernel takes only outside of loops. The gradients that
JAX derives are not in that form, so inside ``lax.scan`` (blocks of one stage, or several steps in one call) a weight
gradient falls to a naive kernel, tens of times slower. ``conv2d`` therefore states both gradients on CPU as
convolutions that already are in NHWC/HWIO form. Other backends get the plain operation and JAX's own gradients.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]
_NHWC = ("NHWC", "HWIO", "NHWC")

# He et al., "Delving Deep into Rectifiers" (the paper's reference [13]): normal, standard deviation sqrt(2 / fan in).
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def conv2d(x: jax.Array, kernel: jax.Array, strides: int, padding: Padding) -> jax.Array:
    """Convolves ``x`` (N, H, W, I) with ``kernel`` (h, w, I, O), giving (N, H', W', O) in ``x``'s dtype.

    ``padding`` is ((top, bottom), (left, right)) in pixels. On CPU the function has reverse-mode gradients only
    (``jax.grad`` and ``jax.vjp``, to any order, but not ``jax.jvp``).
    """
    if jax.default_backend() == "cpu":
        return _conv2d_canonical(x, kernel, strides, padding)
    return _conv(x, kernel, strides, padding)


def _conv(x: jax.Array, kernel: jax.Array, strides: int, padding: Padding, **dilation: tuple[int, int]) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (strides, strides), padding, dimension_numbers=_NHWC, **dilation)


_conv2d_canonical = jax.custom_vjp(_conv, nondiff_argnums=(2, 3))


def _forward(x, kernel, strides, padding):
    return _conv(x, kernel, strides, padding), (x, kernel)


def _backward(strides, padding, residuals, g):
    x, kernel = residuals
    sizes = [(x.shape[i + 1], kernel.shape[i], g.shape[i + 1], padding[i]) for i in (0, 1)]
    # With respect to the input: g, spread out by the stride, with the kernel flipped and its channels exchanged.
    input_padding = tuple((k - 1 - lo, n - 1 + lo - (out - 1) * strides) for n, k, out, (lo, _) in sizes)
    flipped = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    dx = _conv(g, flipped, 1, input_padding, lhs_dilation=(strides, strides))
    # With respect to the kernel: the batch becomes the contracted channel, g (dilated by the stride) the kernel.
    kernel_padding = tuple((lo, k - 1 + (out - 1) * strides + 1 - n - lo) for n, k, out, (lo, _) in sizes)
    images_as_channels = jnp.transpose(x, (3, 1, 2, 0))
    g_as_kernel = jnp.transpose(g, (1, 2, 0, 3))
    dk = _conv(images_as_channels, g_as_kernel, 1, kernel_padding, rhs_dilation=(strides, strides))
    return dx, jnp.transpose(dk, (1, 2, 0, 3))


_conv2d_canonical.defvjp(_forward, _backward)


class Conv(nn.Module):
    """A convolution without bias (batch normalisation follows), padded by ``size // 2`` on every side.

    The padding is explicit because SAME shifts stride-2 windows by a pixel against the published networks. The kernel
    is stored in float32 as (size, size, input channels, filters) and cast to ``dtype`` for the computation.
    """

    filters: int
    size: int
    strides: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", he_normal, (self.size, self.size, x.shape[-1], self.filters), jnp.float32)
        pad = (self.size // 2, self.size // 2)
        return conv2d(x.astype(self.dtype), kernel.astype(self.dtype), self.strides, (pad, pad))
