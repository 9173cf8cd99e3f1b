"""Devices and processes: the mesh, its shardings, and arrays that live on all of it."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from resnet_jax.errors import UserError, one_line


def data_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A one-dimensional mesh named "data" over ``devices``, or over every device of every process.

    Raises UserError where JAX has no devices, because the platform that was asked for cannot start.
    """
    devices = _devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def _devices() -> list[jax.Device]:
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # The latter, bare, where JAX was installed without the platform.
        wanted = getattr(jax.config, "jax_platforms", None) or "any platform"
        raise UserError(
            f"JAX cannot start on {wanted} ({one_line(error)}); install JAX for it, or set JAX_PLATFORMS=cpu"
        ) from error


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of parameters: a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def sharded_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The sharding of a batch: ``axis`` cut into equal parts, one a device."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def to_global(tree: Any, sharding: NamedSharding) -> Any:
    """Places host arrays on the mesh. Every process passes the same whole arrays and keeps its devices' parts."""

    def place(array: np.ndarray) -> jax.Array:
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, tree)


def from_local(tree: Any, sharding: NamedSharding) -> Any:
    """Places host arrays on the mesh. Every process passes its own equal part of the global batch."""
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)), tree)


def wait_for_all(name: str) -> None:
    """Returns once every process of the job has called it with this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def is_main_process() -> bool:
    """Whether this process is the one that writes metrics and messages."""
    return jax.process_index() == 0
