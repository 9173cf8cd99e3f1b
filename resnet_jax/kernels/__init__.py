"""The two operations of the networks that have more than one implementation: convolution and the stem's max-pool.

A network computes with the ``Kernels`` it is given, by default ``PLAIN``. Which implementation computes follows from
the arguments of ``fast_kernels``, the shapes and types of the arrays, and whether oneDNN is installed.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax

from resnet_jax.kernels.convolution import cpu_convolution, plain_convolution
from resnet_jax.kernels.max_pool import cpu_max_pool, plain_max_pool


class Kernels(NamedTuple):
    """A hashable choice of implementations.

    convolution: of ``x`` (N, H, W, I) with ``kernel`` (h, w, I / groups, O), called as
        ``convolution(x, kernel, strides, padding, groups=1, dilation=1)``, to (N, H', W', O). ``strides`` and
        ``dilation`` are those of both axes, ``padding`` is ((top, bottom), (left, right)) in pixels, and group i of the
        input channels makes group i of the output channels.
    max_pool: 3x3 with stride 2, padded by 1: (N, H, W, C) to (N, ceil(H / 2), ceil(W / 2), C).
    """

    convolution: Callable[..., jax.Array]
    max_pool: Callable[[jax.Array], jax.Array]


PLAIN = Kernels(plain_convolution, plain_max_pool)
"""JAX's own operations, which every platform, transformation, mesh and exporter takes."""


@functools.cache
def fast_kernels(platform: str, num_devices: int) -> Kernels:
    """The fastest kernels for a program that runs on ``num_devices`` devices of a platform ("cpu", "gpu", "tpu").

    On CPUs they are two to dozens of times as fast as ``PLAIN`` in training, with these limits: they have reverse-mode
    gradients only (``jax.grad`` and ``jax.vjp`` to any order, not ``jax.jvp``), and on one device, with oneDNN
    installed, their programs cannot be exported. Elsewhere they are ``PLAIN``.
    """
    if platform != "cpu":
        return PLAIN
    # XLA does not know how to divide a foreign function among devices.
    return Kernels(partial(cpu_convolution, use_onednn=num_devices == 1), cpu_max_pool)


__all__ = ["PLAIN", "Kernels", "fast_kernels"]
