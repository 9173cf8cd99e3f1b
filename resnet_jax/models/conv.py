"""2-D convolution with explicit padding, by whatever is fastest on the backend.

On a CPU that is oneDNN where it is installed (``onednn``). Elsewhere on CPUs it is XLA, which computes 1x1 convolutions
faster as products of matrices, and needs the gradients of the others restated: its CPU backend rewrites a convolution
into the form its fast kernel takes only outside of loops. The gradients that JAX derives are not in that form, so
inside ``lax.scan`` (blocks of one stage, or several steps in one call) a weight gradient falls to a naive kernel, tens
of times slower. ``conv2d`` therefore states both gradients as convolutions that already are in NHWC/HWIO form. Other
backends get the plain operation and JAX's own gradients.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.models import onednn

Padding = tuple[tuple[int, int], tuple[int, int]]

# Below, a call of oneDNN costs more than it saves.
_LEAST_MULTIPLY_ADDS = 10_000_000

# He et al., "Delving Deep into Rectifiers" (the paper's reference [13]): normal, standard deviation sqrt(2 / fan in).
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def conv2d(x: jax.Array, kernel: jax.Array, strides: int, padding: Padding) -> jax.Array:
    """Convolves ``x`` (N, H, W, I) with ``kernel`` (h, w, I, O), giving (N, H', W', O) in ``x``'s dtype.

    ``padding`` is ((top, bottom), (left, right)) in pixels. On CPU the function has reverse-mode gradients only
    (``jax.grad`` and ``jax.vjp``, to any order, but not ``jax.jvp``).
    """
    if jax.default_backend() != "cpu":
        return _conv(x, kernel, strides, padding)
    geometry = onednn.Geometry(x.shape, kernel.shape, strides, padding)
    # XLA does not know how to divide a foreign function among devices.
    fits = x.dtype == kernel.dtype == jnp.float32 and jax.device_count() == 1
    if fits and geometry.multiply_adds >= _LEAST_MULTIPLY_ADDS and onednn.library() is not None:
        return _conv_onednn(x, kernel, geometry)
    if kernel.shape[:2] == (1, 1) and padding == ((0, 0), (0, 0)):
        return _conv_1x1(x, kernel, strides)
    return _conv_canonical(x, kernel, strides, padding)


def _conv_1x1(x: jax.Array, kernel: jax.Array, strides: int) -> jax.Array:
    """As a product of matrices, about three times as fast as XLA's convolution (benchmarks/convolutions.py).

    The axis of one, t, makes it a batched product, whose gradient to the kernel XLA's CPU backend spreads over cores.
    """
    return jnp.einsum("tnhwi,tio->nhwo", x[None, :, ::strides, ::strides], kernel[0])


def _conv(
    x: jax.Array,
    kernel: jax.Array,
    strides: int,
    padding: Padding,
    lhs_dilation: tuple[int, int] = (1, 1),
    rhs_dilation: tuple[int, int] = (1, 1),
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_canonical(x: jax.Array, kernel: jax.Array, strides: int, padding: Padding) -> jax.Array:
    return _conv(x, kernel, strides, padding)


def _forward(
    x: jax.Array, kernel: jax.Array, strides: int, padding: Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(x, kernel, strides, padding), (x, kernel)


def _backward(
    strides: int, padding: Padding, residuals: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    # (image, kernel and output size, padding before) of each axis.
    rows, columns = ((x.shape[i], kernel.shape[i - 1], g.shape[i], padding[i - 1][0]) for i in (1, 2))
    dilation = (strides, strides)

    # With respect to the input: g, spread out by the stride, with the kernel flipped and its channels exchanged.
    def input_padding(size: int, k: int, out: int, before: int) -> tuple[int, int]:
        return k - 1 - before, size - 1 + before - (out - 1) * strides

    flipped = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    dx = _conv(g, flipped, 1, (input_padding(*rows), input_padding(*columns)), lhs_dilation=dilation)

    # With respect to the kernel: the batch becomes the contracted channel, and g, dilated by the stride, the kernel.
    def kernel_padding(size: int, k: int, out: int, before: int) -> tuple[int, int]:
        return before, k + (out - 1) * strides - size - before

    batch_as_channels = jnp.transpose(x, (3, 1, 2, 0))
    g_as_kernel = jnp.transpose(g, (1, 2, 0, 3))
    padding_for_kernel = (kernel_padding(*rows), kernel_padding(*columns))
    dk = _conv(batch_as_channels, g_as_kernel, 1, padding_for_kernel, rhs_dilation=dilation)
    return dx, jnp.transpose(dk, (1, 2, 0, 3))


_conv_canonical.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv_onednn(x: jax.Array, kernel: jax.Array, geometry: onednn.Geometry) -> jax.Array:
    return onednn.forward(x, kernel, geometry)


def _forward_onednn(
    x: jax.Array, kernel: jax.Array, geometry: onednn.Geometry
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv_onednn(x, kernel, geometry), (x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _backward_onednn(
    geometry: onednn.Geometry, residuals: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    return onednn.gradient_of_image(g, kernel, geometry), onednn.gradient_of_kernel(x, g, geometry)


_conv_onednn.defvjp(_forward_onednn, _backward_onednn)
# The gradients' own derivatives are those of the same gradients as stated above.
_backward_onednn.defvjp(
    lambda geometry, *arguments: (_backward_onednn(geometry, *arguments), arguments),
    lambda geometry, arguments, g: jax.vjp(partial(_backward, geometry.strides, geometry.padding), *arguments)[1](g),
)


class Conv(nn.Module):
    """A convolution, padded by ``size // 2`` on every side; without bias, since batch normalisation follows.

    The padding is explicit because SAME shifts stride-2 windows by a pixel against the published networks. The kernel
    is stored in float32 as (size, size, input channels, filters) and cast to ``dtype`` for the computation.
    """

    filters: int
    size: int
    strides: int = 1
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", he_normal, (self.size, self.size, x.shape[-1], self.filters), jnp.float32)
        pad = (self.size // 2, self.size // 2)
        y = conv2d(x.astype(self.dtype), kernel.astype(self.dtype), self.strides, (pad, pad))
        if self.use_bias:
            y += self.param("bias", self.bias_init, (self.filters,), jnp.float32).astype(self.dtype)
        return y
