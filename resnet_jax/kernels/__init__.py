"""The two operations of the networks that have more than one implementation: convolution and the stem's max-pool.

A network computes with the ``Kernels`` it is given, by default ``PLAIN``. Which implementation computes follows from
the arguments of ``fast_kernels``, the shapes and types of the arrays, and whether oneDNN is installed.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
from jax.sharding import Mesh, PartitionSpec

from resnet_jax.kernels.convolution import Padding, cpu_convolution, plain_convolution
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


@functools.cache
def divided(kernels: Kernels, mesh: Mesh) -> Kernels:
    """``kernels`` for batches that are divided over the axis "data" of ``mesh``.

    XLA divides a convolution among devices with the batch, but not one with groups (openxla/xla issue 47945): every
    device would gather the whole batch and compute all of it. Here each computes that of its own part.
    """
    return kernels._replace(convolution=partial(_on_each_device, kernels.convolution, mesh))


def _on_each_device(
    convolution: Callable[..., jax.Array],
    mesh: Mesh,
    x: jax.Array,
    kernel: jax.Array,
    strides: int,
    padding: Padding,
    groups: int = 1,
    dilation: int = 1,
) -> jax.Array:
    window = {"strides": strides, "padding": padding, "groups": groups, "dilation": dilation}
    if groups == 1 or x.shape[0] % mesh.size:  # An initialisation has a batch of one.
        return convolution(x, kernel, **window)

    def own_part(x: jax.Array, kernel: jax.Array) -> jax.Array:
        # Each device has a gradient of its own to the kernel, which is summed over them where it leaves.
        return convolution(x, jax.lax.pcast(kernel, "data", to="varying"), **window)

    batch, whole = PartitionSpec("data"), PartitionSpec()
    return jax.shard_map(own_part, mesh=mesh, in_specs=(batch, whole), out_specs=batch)(x, kernel)


__all__ = ["PLAIN", "Kernels", "divided", "fast_kernels"]
