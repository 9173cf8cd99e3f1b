"""Batches on their way to the devices: indices of resident data sets, photographs of streamed ones."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnet_jax import parallel
from resnet_jax.data.dataset import Data
from resnet_jax.data.order import example_indices
from resnet_jax.data.resident import Split
from resnet_jax.data.streaming import (
    EvalChunks,
    Loading,
    Photographs,
    Share,
    TrainChunks,
    View,
    evaluation_batches,
    training_batches,
    training_box,
)


def training_inputs(
    config: ConfigDict, data: Data, mesh: Mesh, start: int, stop: int
) -> tuple[Split | None, Iterator[Any]]:
    """What ``step.make_train_step`` takes for steps ``start`` to ``stop`` - 1, config.steps_per_dispatch at a time.

    The split on the devices and arrays (k, B) of indices into it; or, of photographs, None and
    {"image": (k, B, S, S, 3) uint8, "label": (k, B)}.
    """
    if isinstance(data, Photographs):
        chunks = TrainChunks(
            data.train, config.seed, config.batch_size, training_box(config), config.data.crop_size, _share()
        )
        batches = training_batches(chunks, start, stop, Loading.of(config), config.data.max_unreadable)
        return None, _stacked(batches, config.steps_per_dispatch, mesh)
    indices = (
        example_indices(
            config.seed, np.arange(step * config.batch_size, (step + 1) * config.batch_size), len(data.train)
        )[_mine(config.batch_size)]
        for step in range(start, stop)
    )
    split = parallel.to_global(data.train, parallel.replicated(mesh))
    return split, _stacked(indices, config.steps_per_dispatch, mesh)


def evaluation_inputs(
    config: ConfigDict, data: Data, split: str, view: View | None, batch_size: int, mesh: Mesh
) -> Iterator[dict[str, jax.Array]]:
    """Batches that show every example of a split, or of a view of photographs, once.

    {"index"} (B,) of a resident split, -1 where there is none; of photographs what ``streaming.EvalChunks`` makes. B is
    ``batch_size``, or the number of examples if that is less, rounded up to a multiple of the devices.
    """
    count = len(data.split(split)) if view is None else len(view.indices)
    size = -(-min(batch_size, count) // mesh.size) * mesh.size
    if isinstance(data, Photographs):
        assert view is not None
        chunks = EvalChunks(data.split(split), view, size, _share())
        batches = evaluation_batches(chunks, Loading.in_threads(config), config.data.max_unreadable)
    else:
        padded = np.arange(-(-count // size) * size, dtype=np.int32)
        padded[count:] = -1
        batches = ({"index": part[_mine(size)]} for part in padded.reshape(-1, size))
    for batch in batches:
        yield parallel.from_local(batch, parallel.sharded_batch(mesh))


def _share() -> Share:
    return Share(jax.process_index(), jax.process_count())


def _mine(batch_size: int) -> slice:
    """The part of a global batch that this process puts on its devices."""
    share = _share()
    size = batch_size // share.count
    return slice(share.index * size, (share.index + 1) * size)


def _stacked(batches: Iterator[Any], count: int, mesh: Mesh) -> Iterator[Any]:
    while group := list(islice(batches, count)):
        stacked = jax.tree.map(lambda *parts: np.stack(parts) if len(parts) > 1 else parts[0][None], *group)
        yield parallel.from_local(stacked, parallel.sharded_batch(mesh, axis=1))
