"""2-D convolution with explicit padding: JAX's own, and a faster one for CPUs.

On a CPU the fastest is oneDNN where it is installed (``onednn``). Otherwise it is XLA, which computes 1x1 convolutions
faster as products of matrices, and needs the gradients of the others restated: its CPU backend rewrites a convolution
into the form its fast kernel takes only outside of loops. The gradients that JAX derives are not in that form, so
inside ``lax.scan`` (blocks of one stage, or several steps in one call) a weight gradient falls to a naive kernel, tens
of times slower. ``cpu_convolution`` therefore states both gradients as convolutions that already are in NHWC/HWIO form,
and the weight gradient of a grouped convolution, which has no such form, as products of matrices.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.kernels import onednn

Padding = tuple[tuple[int, int], tuple[int, int]]

# Below, a call of oneDNN costs more than it saves.
_LEAST_MULTIPLY_ADDS = 10_000_000


class _Window(NamedTuple):
    """All of a convolution but its arrays."""

    strides: int
    padding: Padding
    groups: int
    dilation: int


def plain_convolution(
    x: jax.Array, kernel: jax.Array, strides: int, padding: Padding, groups: int = 1, dilation: int = 1
) -> jax.Array:
    """``lax.conv_general_dilated`` with the arguments and result of ``Kernels.convolution``."""
    return _conv(x, kernel, strides, padding, rhs_dilation=(dilation, dilation), groups=groups)


def cpu_convolution(
    x: jax.Array,
    kernel: jax.Array,
    strides: int,
    padding: Padding,
    groups: int = 1,
    dilation: int = 1,
    *,
    use_onednn: bool = False,
) -> jax.Array:
    """The same numbers to rounding, faster on CPUs and with reverse-mode gradients only, to any order.

    With ``use_onednn`` large float32 convolutions are computed by oneDNN where it is installed. Arrays of symbolic
    shapes (``jax.export.symbolic_shape``) get the plain operation.
    """
    window = _Window(strides, padding, groups, dilation)
    if not all(isinstance(size, int) for size in (*x.shape, *kernel.shape)):
        return plain_convolution(x, kernel, *window)
    if use_onednn and x.dtype == kernel.dtype == jnp.float32:
        geometry = onednn.Geometry(x.shape, kernel.shape, *window)
        if geometry.multiply_adds >= _LEAST_MULTIPLY_ADDS and onednn.library() is not None:
            return _conv_onednn(x, kernel, geometry)
    if kernel.shape[:2] == (1, 1) and padding == ((0, 0), (0, 0)):
        return _conv_1x1(x, kernel, strides, groups)
    return _conv_canonical(x, kernel, window)


def _conv_1x1(x: jax.Array, kernel: jax.Array, strides: int, groups: int) -> jax.Array:
    """As a product of matrices, about three times as fast as XLA's convolution (benchmarks/convolutions.py).

    The axis of one, t, makes it a batched product, whose gradient to the kernel XLA's CPU backend spreads over cores.
    """
    x = x[None, :, ::strides, ::strides]
    if groups == 1:
        return jnp.einsum("tnhwi,tio->nhwo", x, kernel[0])
    y = jnp.einsum("nhwgi,igo->nhwgo", _split(x[0], groups), _split(kernel[0, 0], groups))
    return y.reshape(*y.shape[:3], -1)


def _split(x: jax.Array, groups: int) -> jax.Array:
    """The last axis as (groups, channels of a group)."""
    return x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)


def _conv(
    x: jax.Array,
    kernel: jax.Array,
    strides: int,
    padding: Padding,
    lhs_dilation: tuple[int, int] = (1, 1),
    rhs_dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv_canonical(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    return plain_convolution(x, kernel, *window)


def _forward(x: jax.Array, kernel: jax.Array, window: _Window) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return plain_convolution(x, kernel, *window), (x, kernel)


def _backward(window: _Window, residuals: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    gradient_of_kernel = _gradient_of_kernel if window.groups == 1 else _gradient_of_grouped_kernel
    return _gradient_of_image(x, kernel, g, window), gradient_of_kernel(x, kernel, g, window)


_conv_canonical.defvjp(_forward, _backward)


def _gradient_of_image(x: jax.Array, kernel: jax.Array, g: jax.Array, window: _Window) -> jax.Array:
    """``g``, spread out by the stride, convolved with the kernel, flipped and with its channels exchanged."""
    strides, padding, groups, dilation = window

    def padding_of(axis: int) -> tuple[int, int]:
        size, out, before = x.shape[axis], g.shape[axis], padding[axis - 1][0]
        reach = (kernel.shape[axis - 1] - 1) * dilation  # From a window's first pixel to its last.
        return reach - before, size - 1 + before - (out - 1) * strides

    flipped = kernel[::-1, ::-1]
    if groups == 1:
        exchanged = jnp.swapaxes(flipped, 2, 3)
    else:  # (h, w, I / groups, O) to (h, w, O / groups, I), within each group.
        exchanged = jnp.swapaxes(_split(flipped, groups), 2, 4)
        exchanged = exchanged.reshape(*exchanged.shape[:3], -1)
    return _conv(
        g, exchanged, 1, (padding_of(1), padding_of(2)), (strides, strides), (dilation, dilation), groups=groups
    )


def _gradient_of_kernel(x: jax.Array, kernel: jax.Array, g: jax.Array, window: _Window) -> jax.Array:
    """The batch becomes the contracted channel, and ``g``, dilated by the stride, the kernel."""
    strides, padding, _, dilation = window

    def padding_of(axis: int) -> tuple[int, int]:
        size, out, before = x.shape[axis], g.shape[axis], padding[axis - 1][0]
        reach = (kernel.shape[axis - 1] - 1) * dilation
        return before, reach + 1 + (out - 1) * strides - size - before

    batch_as_channels = jnp.transpose(x, (3, 1, 2, 0))
    g_as_kernel = jnp.transpose(g, (1, 2, 0, 3))
    dk = _conv(
        batch_as_channels, g_as_kernel, dilation, (padding_of(1), padding_of(2)), rhs_dilation=(strides, strides)
    )
    return jnp.transpose(dk, (1, 2, 0, 3))


def _gradient_of_grouped_kernel(x: jax.Array, kernel: jax.Array, g: jax.Array, window: _Window) -> jax.Array:
    """For each place in the kernel a product of matrices, (I / groups, pixels) by (pixels, O / groups), for each group.

    As a convolution it would be one with ``batch_group_count``, which XLA's CPU backend computes naively.
    """
    strides, padding, groups, dilation = window
    (n, _, _, channels), (_, rows, columns, _) = x.shape, g.shape
    height, width = kernel.shape[:2]

    def last(taps: int, out: int) -> int:
        """One past the last pixel that a window reads, in the padded image."""
        return (taps - 1) * dilation + (out - 1) * strides + 1

    # Pixels that no window reads are cropped, by a negative padding.
    after = [
        last(taps, out) - size - before
        for taps, out, size, (before, _) in zip((height, width), (rows, columns), x.shape[1:3], padding, strict=True)
    ]
    edges = ((0, 0, 0), (padding[0][0], after[0], 0), (padding[1][0], after[1], 0), (0, 0, 0))
    padded = lax.pad(x, jnp.zeros((), x.dtype), edges)
    g = _split(g, groups)

    def at(i: int, j: int) -> jax.Array:
        first = (0, i * dilation, j * dilation, 0)
        limit = (n, first[1] + (rows - 1) * strides + 1, first[2] + (columns - 1) * strides + 1, channels)
        pixels = lax.slice(padded, first, limit, (1, strides, strides, 1))
        return jnp.einsum("nhwgi,nhwgo->igo", _split(pixels, groups), g).reshape(kernel.shape[2:])

    return jnp.stack([jnp.stack([at(i, j) for j in range(width)]) for i in range(height)])


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
    lambda geometry, arguments, g: jax.vjp(partial(_backward, _Window(*geometry[2:])), *arguments)[1](g),
)
