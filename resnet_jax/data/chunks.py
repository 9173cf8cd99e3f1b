"""Photographs decoded and cropped by threads and processes, ahead of the devices and in order. Imports no jax.

A chunk (a few photographs of one batch) is a function of its number, made by any thread or process of Grain's, which
keeps the chunks in order and some of them ahead. So a run that starts again at a step sees exactly the batches it would
have seen, on any number of hosts: the step is all there is to the state of this iterator.
"""

import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import cv2
import grain
import numpy as np
from absl import flags
from tqdm import tqdm

from resnet_jax.data.crops import Crop, Progressive
from resnet_jax.data.dataset import Batch, Share
from resnet_jax.data.decode.boxes import Interpolation, Look
from resnet_jax.data.decode.images import UnreadableImage, crop_and_resize, image_size
from resnet_jax.data.order import example_indices
from resnet_jax.data.sources.protocol import Source
from resnet_jax.errors import UserError

# Photographs a thread makes before it hands them over: many enough to cost little, few enough for an early first batch.
CHUNK = 32

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class PhotographView:
    """What is seen of some photographs, each at the top left of a canvas (height, width) of zeros."""

    indices: np.ndarray
    canvas: tuple[int, int]
    look: Look

    @property
    def count(self) -> int:
        return len(self.indices)


class Loading(NamedTuple):
    """How many threads decode, in each of how many worker processes (0: in this one)."""

    threads: int
    workers: int


def training_loading(threads: int, workers: int) -> Loading:
    """``threads`` in each of ``workers`` processes; 0 threads: they share the cores, over all processes."""
    return Loading(threads or max(1, cv2.getNumberOfCPUs() // max(1, workers)), workers)


def evaluation_loading(threads: int) -> Loading:
    """Threads alone: an evaluation is short beside the seconds that processes take to start. 0: one for each core."""
    return Loading(threads or cv2.getNumberOfCPUs(), 0)


class Chunks(Protocol):
    """Chunk number -> arrays (n, ...) by name, and "unreadable", the names of photographs that cannot be decoded.

    ``chunk`` is the most photographs in one.
    """

    @property
    def batch_size(self) -> int: ...

    @property
    def share(self) -> Share: ...

    @property
    def chunk(self) -> int: ...

    def __call__(self, number: int) -> dict[str, Any]: ...


@dataclass(frozen=True)
class TrainChunks:
    """Chunk number -> {"image" (n, S, S, 3) uint8, "label" (n,) int32, "unreadable"}, in the order of training.

    S is ``crop_size``, or what ``progressive`` makes of it at the chunk's step.
    A photograph that cannot be decoded is listed in "unreadable" and the next one of the data set takes its place.
    """

    source: Source
    seed: int
    batch_size: int
    crop: Crop
    crop_size: int
    share: Share
    repeats: int = 1
    progressive: Progressive | None = None
    interpolation: Interpolation = "area"
    chunk: int = CHUNK

    def __call__(self, number: int) -> dict[str, Any]:
        first, size = place(self, number)
        positions = np.arange(first, first + size)
        side = self.crop_size
        if self.progressive:
            steps_per_epoch = max(1, len(self.source) // self.batch_size)
            side = self.progressive.size(first // self.batch_size, steps_per_epoch, side)
        images = np.empty((size, side, side, 3), np.uint8)
        labels = np.empty(size, np.int32)
        unreadable: list[str] = []
        order = example_indices(self.seed, positions, len(self.source), self.repeats, self.batch_size)
        for row, index in enumerate(order):
            # Of the place in the run, not of the chunk: the crops do not depend on the number of processes.
            rng = np.random.default_rng((self.seed, int(positions[row])))
            labels[row] = self._read_into(images[row], int(index), rng, unreadable)
        return {"image": images, "label": labels, "unreadable": unreadable}

    def _read_into(self, crop: np.ndarray, index: int, rng: np.random.Generator, unreadable: list[str]) -> int:
        """Fills ``crop`` from the first readable photograph from ``index`` on, and gives its label."""
        candidates = ((index + offset) % len(self.source) for offset in range(len(self.source)))
        choose_box = partial(self.crop.box, rng, crop_size=self.crop_size)  # Also where it is seen in fewer pixels.

        def read(record: dict[str, Any]) -> int:
            crop_and_resize(record["image"], choose_box, crop.shape[:2], True, crop, self.interpolation)
            return record["label"]

        return first_readable(self.source, candidates, read, unreadable)[1]


@dataclass(frozen=True)
class EvalChunks:
    """Chunk number -> {"image" (n, *canvas, 3) uint8, "size" (n, 2), "label", "index" (n,), "unreadable"}.

    Labels are -1 where there is no photograph: after the last one, and for one that cannot be decoded.
    """

    source: Source
    view: PhotographView
    batch_size: int
    share: Share
    chunk: int = CHUNK

    def __call__(self, number: int) -> dict[str, Any]:
        first, size = place(self, number)
        look, images = self.view.look, np.zeros((size, *self.view.canvas, 3), np.uint8)
        sizes = np.ones((size, 2), np.int32)
        labels, indices = np.full(size, -1, np.int32), np.zeros(size, np.int32)
        unreadable: list[str] = []
        for row, index in enumerate(self.view.indices[first : first + size]):
            record = self.source[int(index)]
            try:
                pixels = crop_and_resize(record["image"], look.box, look.resized, interpolation=look.interpolation)
            except UnreadableImage as error:
                unreadable.append(f"{record['name']} ({error})")
                continue
            height, width = sizes[row] = pixels.shape[:2]
            images[row, :height, :width] = pixels
            labels[row], indices[row] = record["label"], index
        return {"image": images, "size": sizes, "label": labels, "index": indices, "unreadable": unreadable}


def first_readable(
    source: Source, candidates: Iterable[int], read: Callable[[dict[str, Any]], Result], unreadable: list[str]
) -> tuple[int, Result]:
    """The first candidate of a source whose record ``read`` can decode, and what that gives.

    Lists the others in ``unreadable``. Raises UserError where there is none.
    """
    for index in candidates:
        record = source[index]
        try:
            return index, read(record)
        except UnreadableImage as error:
            unreadable.append(f"{record['name']} ({error})")
    raise UserError(f"none of {len(unreadable)} photographs can be decoded, first {unreadable[0]}")


def _per_step(chunks: Chunks) -> int:
    """How many equal chunks make this process's part of a batch."""
    mine = chunks.batch_size // chunks.share.count
    return next(count for count in range(math.ceil(mine / chunks.chunk), mine + 1) if mine % count == 0)


def place(chunks: Chunks, number: int) -> tuple[int, int]:
    """The first position of a chunk in the order of all examples, and its size."""
    step, part = divmod(number, _per_step(chunks))
    mine = chunks.batch_size // chunks.share.count
    size = mine // _per_step(chunks)
    return step * chunks.batch_size + chunks.share.index * mine + part * size, size


def make_batches(make: Chunks, start: int, stop: int, loading: Loading, limit: int) -> Iterator[Batch]:
    """This process's parts of batches ``start`` to ``stop`` - 1 out of their chunks, which are made ahead of time.

    Names each photograph that cannot be decoded on stderr. Raises UserError when there are more than ``limit``, and
    when a worker process was killed.
    """
    per_step = _per_step(make)
    chunks = grain.MapDataset.range(start * per_step, stop * per_step).map(make)
    # Two batches ahead, and a chunk in the making for each thread.
    options = grain.ReadOptions(num_threads=loading.threads, prefetch_buffer_size=2 * per_step + loading.threads)
    stream = chunks.to_iter_dataset(options)
    if loading.workers:
        # Where a worker is killed, Python's process that cleans up after it would warn of what it finds.
        os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
        if not flags.FLAGS.is_parsed():  # By a program of another's; Grain hands them to its processes.
            flags.FLAGS.mark_as_parsed()
        processes = grain.MultiprocessingOptions(num_workers=loading.workers, per_worker_buffer_size=4)
        stream = stream.mp_prefetch(processes, _begin_worker)
    seen: set[str] = set()
    parts = []
    with closing(iter(stream)) as iterator:  # Ends the threads and processes also when a run stops early.
        for part in _explained(iterator):
            _warn(part.pop("unreadable"), seen, limit)
            parts.append(part)
            if len(parts) == per_step:
                yield parts[0] if per_step == 1 else {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
                parts = []


def _explained(parts: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    try:
        yield from parts
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):
            raise
        raise UserError(
            "a process that reads the data (config.data.workers) was killed, as happens when memory is short; run the "
            "same command again, with fewer of them if it recurs"
        ) from None


def _begin_worker(index: int, count: int) -> None:
    """Ties a worker process to the run, which alone decides on stop signals, and may be killed."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:  # It may have ended already, while this process imported what it needs.
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _warn(unreadable: list[str], seen: set[str], limit: int) -> None:
    """Names on stderr what is new, and adds it to ``seen``. Raises UserError when those are more than ``limit``."""
    for name in unreadable:
        if name not in seen:
            seen.add(name)
            print(f"warning: {name} cannot be decoded and is skipped", file=sys.stderr)
    if len(seen) > limit:
        raise UserError(
            f"{len(seen)} photographs cannot be decoded, more than config.data.max_unreadable {limit}; fix them, or "
            f"raise it"
        )


def photograph_sizes(source: Source, loading: Loading, limit: int) -> np.ndarray:
    """(N, 2) heights and widths as ``image_size`` has them, 0 for a photograph that cannot be decoded.

    Names those on stderr, and raises UserError for more than ``limit``.
    """

    def size(index: int) -> tuple[tuple[int, int], str]:
        record = source[index]
        try:
            return image_size(record["image"]), ""
        except UnreadableImage as error:
            return (0, 0), f"{record['name']} ({error})"

    options = grain.ReadOptions(num_threads=loading.threads, prefetch_buffer_size=4 * loading.threads)
    sizes, seen = [], set[str]()
    with closing(iter(grain.MapDataset.range(len(source)).map(size).to_iter_dataset(options))) as iterator:
        for found, reason in tqdm(iterator, "sizes", len(source), unit=" images", delay=1, leave=False):
            _warn([reason] if reason else [], seen, limit)
            sizes.append(found)
    return np.array(sizes, np.int32).reshape(-1, 2)
