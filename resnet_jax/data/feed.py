"""Batches on their way to the devices."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from resnet_jax import parallel, stopping
from resnet_jax.data.dataset import Dataset, Share, View
from resnet_jax.errors import UserError


def training_inputs(
    dataset: Dataset,
    seed: int,
    batch_size: int,
    steps_per_dispatch: int,
    start: int,
    stop: int,
    mesh: Mesh,
    resident: Any = None,
) -> tuple[Any, Iterator[Any]]:
    """What is resident of the training split, on every device, and the batches of steps ``start`` to ``stop`` - 1.

    The batches come ``steps_per_dispatch`` = k at a time: leaves (k, B, ...), cut over the devices along B.
    ``dataset.gather`` takes one of them. ``resident`` is that of an earlier call, which needs no memory again.
    """
    if resident is None:
        resident = parallel.to_global(dataset.resident("train"), parallel.replicated(mesh))
    batches = dataset.training_batches(seed, batch_size, start, stop, _share())
    return resident, _stacked(batches, steps_per_dispatch, mesh)


def evaluation_inputs(
    dataset: Dataset, split: str, view: View, batch_size: int, mesh: Mesh
) -> Iterator[dict[str, jax.Array]]:
    """Batches that show every example of a view once, cut over the devices; see ``Dataset.evaluation_batches``.

    Each is of ``batch_size``, or the number of examples if that is less, rounded up to a multiple of the devices.
    """
    size = -(-min(batch_size, view.count) // mesh.size) * mesh.size
    for batch in dataset.evaluation_batches(split, view, size, _share()):
        stopping.point()
        yield parallel.from_local(batch, parallel.sharded_batch(mesh))


def _share() -> Share:
    return Share(jax.process_index(), jax.process_count())


def _stacked(batches: Iterator[Any], count: int, mesh: Mesh) -> Iterator[Any]:
    while group := list(islice(batches, count)):
        shapes = [jax.tree.map(np.shape, batch) for batch in group]
        if any(shape != shapes[0] for shape in shapes):
            raise UserError(
                f"batches lie on canvases of several sizes and cannot be stacked {count} at a time; set "
                f"config.steps_per_dispatch=1"
            )
        stacked = jax.tree.map(lambda *parts: np.stack(parts) if len(parts) > 1 else parts[0][None], *group)
        yield parallel.from_local(stacked, parallel.sharded_batch(mesh, axis=1))
