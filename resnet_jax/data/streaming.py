"""Photographs of any size: decoded and cropped on the host while the devices compute. Touches no device.

A chunk (a few photographs of one batch) is a function of its number, made by any thread or process of Grain's, which
keeps the chunks in order and some of them ahead. So a run that starts again at a step sees exactly the batches it would
have seen, on any number of hosts: the step is all there is to the state of this iterator.
"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import grain
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from resnet_jax.data import crops, folder, packed, tfds_source
from resnet_jax.data.images import Box, UnreadableImage, crop_and_resize, image_size
from resnet_jax.data.order import example_indices
from resnet_jax.data.source import Source
from resnet_jax.errors import UserError

NAMES = ("imagenet2012", "folder", "packed")
# Photographs a thread makes before it hands them over: many enough to cost little, few enough for an early first batch.
_CHUNK = 32

ChooseBox = Callable[[np.random.Generator, int, int], Box]
Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Photographs:
    """A data set that is streamed. Its splits are opened when they are first needed: one may be missing."""

    open_split: Callable[[str], Source]
    class_names: list[str]
    image_shape: tuple[int, int, int]  # Of a training crop.
    find_train_files: Callable[[], list[Path]]  # Or folders; they change when the training split does.

    @cached_property
    def train(self) -> Source:
        return self.open_split("train")

    @cached_property
    def validation(self) -> Source:
        return self.open_split("validation")

    def split(self, name: str) -> Source:
        """The split called "train" or "validation". Raises UserError for another, or one that is not there."""
        if name not in ("train", "validation"):
            raise UserError(f"there is no split {name!r} of photographs; use train or validation")
        return self.train if name == "train" else self.validation


@dataclass(frozen=True)
class Share:
    """The part of every batch that this process makes: all of it, or an equal part in a multi-host job."""

    index: int = 0
    count: int = 1


class Loading(NamedTuple):
    """How many threads decode, in each of how many worker processes (0: in this one)."""

    threads: int
    workers: int

    @classmethod
    def of(cls, config: ConfigDict) -> "Loading":
        """For training: the threads share the cores, over all processes."""
        workers = config.data.workers
        return cls(config.data.threads or max(1, cv2.getNumberOfCPUs() // max(1, workers)), workers)

    @classmethod
    def in_threads(cls, config: ConfigDict) -> "Loading":
        """For evaluation, which is short beside the seconds that processes take to start."""
        return cls(config.data.threads or cv2.getNumberOfCPUs(), 0)


def load_photographs(config: ConfigDict) -> Photographs:
    """Opens config.data.name: "imagenet2012" (TFDS), "folder" (of class folders) or "packed" (``data.pack``).

    Raises UserError if it is not where config.data_dir says; a split of it that is not, when it is asked for.
    """
    name, shape = config.data.name, (config.data.crop_size, config.data.crop_size, 3)
    if name == "imagenet2012":
        builder = tfds_source.open_builder(name, config.data_dir)
        open_split: Any = partial(tfds_source.open_split, builder, encoded=True)
        class_names = tfds_source.class_names(builder)
        return Photographs(open_split, class_names, shape, partial(tfds_source.split_files, builder, "train"))
    if config.data_dir is None:
        raise UserError(f"config.data.name={name} needs --config.data_dir, the folder that holds the photographs")
    root = Path(config.data_dir).expanduser()
    if name == "packed":
        find_files = lambda: [path for path in (root / "train.bin",) if path.exists()]  # noqa: E731
        return Photographs(partial(packed.open_pack, root), packed.class_names(root), shape, find_files)
    open_split = partial(folder.open_folder, root)
    # The times of folders tell of files that come and go in them.
    return Photographs(
        open_split, folder.class_names(root), shape, lambda: [Path(parent) for parent, _, _ in os.walk(root / "train")]
    )


def training_box(config: ConfigDict) -> ChooseBox:
    """The random crop that config.data.crop names."""
    data = config.data
    if data.crop == "scale_jitter":
        return partial(crops.scale_jitter_box, shorter_side=tuple(data.shorter_side), crop=data.crop_size)
    if data.crop == "random_resized":
        return partial(crops.random_resized_box, area=tuple(data.area))
    raise UserError(f"config.data.crop is {data.crop!r}; it must be 'scale_jitter' or 'random_resized'")


@dataclass(frozen=True)
class TrainChunks:
    """Chunk number -> {"image" (n, S, S, 3) uint8, "label" (n,) int32, "unreadable"}, in the order of training.

    A photograph that cannot be decoded is listed in "unreadable" and the next one of the data set takes its place.
    """

    source: Source
    seed: int
    batch_size: int
    choose_box: ChooseBox
    crop_size: int
    share: Share

    def __call__(self, number: int) -> dict[str, Any]:
        first, size = _place(number, self.batch_size, self.share)
        positions = np.arange(first, first + size)
        images = np.empty((size, self.crop_size, self.crop_size, 3), np.uint8)
        labels = np.empty(size, np.int32)
        unreadable: list[str] = []
        for row, index in enumerate(example_indices(self.seed, positions, len(self.source))):
            # Of the place in the run, not of the chunk: the crops do not depend on the number of processes.
            rng = np.random.default_rng((self.seed, int(positions[row])))
            labels[row] = self._read_into(images[row], int(index), rng, unreadable)
        return {"image": images, "label": labels, "unreadable": unreadable}

    def _read_into(self, crop: np.ndarray, index: int, rng: np.random.Generator, unreadable: list[str]) -> int:
        """Fills ``crop`` from the first readable photograph from ``index`` on, and gives its label."""
        for offset in range(len(self.source)):
            record = self.source[(index + offset) % len(self.source)]
            try:
                choose_box = partial(self.choose_box, rng)
                crop_and_resize(record["image"], choose_box, crop.shape[:2], fast=True, out=crop)
                return record["label"]
            except UnreadableImage as error:
                unreadable.append(f"{record['name']} ({error})")
        raise UserError(f"not one of {len(self.source)} photographs can be decoded, first {unreadable[0]}")


def training_batches(chunks: TrainChunks, start: int, stop: int, loading: Loading, limit: int) -> Iterator[Batch]:
    """This process's parts of the batches of steps ``start`` to ``stop`` - 1: {"image", "label"}.

    Names each photograph that cannot be decoded on stderr; raises UserError when there are more than ``limit``.
    """
    return _joined(chunks, start, stop, loading, limit)


class View(NamedTuple):
    """What evaluation sees of some photographs: a box, resized, at the top left of a canvas of zeros.

    ``choose_box`` and ``choose_size`` are functions of the photograph's (height, width).
    """

    indices: np.ndarray
    canvas: tuple[int, int]
    choose_box: Callable[[int, int], Box]
    choose_size: Callable[[int, int], tuple[int, int]]


@dataclass(frozen=True)
class EvalChunks:
    """Chunk number -> {"image" (n, *canvas, 3) uint8, "size" (n, 2), "label", "index" (n,), "unreadable"}.

    Labels are -1 where there is no photograph: after the last one, and for one that cannot be decoded.
    """

    source: Source
    view: View
    batch_size: int
    share: Share

    def __call__(self, number: int) -> dict[str, Any]:
        first, size = _place(number, self.batch_size, self.share)
        images = np.zeros((size, *self.view.canvas, 3), np.uint8)
        sizes = np.ones((size, 2), np.int32)
        labels, indices = np.full(size, -1, np.int32), np.zeros(size, np.int32)
        unreadable: list[str] = []
        for row, index in enumerate(self.view.indices[first : first + size]):
            record = self.source[int(index)]
            try:
                height, width = self.view.choose_size(*image_size(record["image"]))
                pixels = crop_and_resize(record["image"], self.view.choose_box, (height, width))
            except UnreadableImage as error:
                unreadable.append(f"{record['name']} ({error})")
                continue
            images[row, :height, :width], sizes[row] = pixels, (height, width)
            labels[row], indices[row] = record["label"], index
        return {"image": images, "size": sizes, "label": labels, "index": indices, "unreadable": unreadable}


def evaluation_batches(chunks: EvalChunks, loading: Loading, limit: int) -> Iterator[Batch]:
    """This process's parts of the batches that show each photograph of the view once, the last one padded."""
    steps = math.ceil(len(chunks.view.indices) / chunks.batch_size)
    return _joined(chunks, 0, steps, loading, limit)


def mean_image(source: Source, shorter_side: int, crop: int, loading: Loading, limit: int) -> np.ndarray:
    """The mean of all central crops, (crop, crop, 3) float64 in [0, 1]: the paper's per-pixel mean (section 3.4).

    Summed in integers, so that it does not depend on the number of threads or hosts.
    """
    view = central_view(np.arange(len(source)), shorter_side, crop)
    chunks = EvalChunks(source, view, _CHUNK * 8, Share())
    total, count = np.zeros((crop, crop, 3), np.uint64), 0
    with tqdm(total=len(source), desc="mean image (once)", unit=" images", delay=1, mininterval=1) as bar:
        for batch in evaluation_batches(chunks, loading, limit):
            found = batch["label"] >= 0
            total += batch["image"][found].sum(axis=0, dtype=np.uint64)
            count += int(found.sum())
            bar.update(int(found.sum()))
    if not count:
        raise UserError(f"not one of {len(source)} photographs can be decoded; correct config.data_dir")
    return total / (255 * count)


def central_view(indices: np.ndarray, shorter_side: int, crop: int) -> View:
    """The central crop x crop pixels of each photograph, its shorter side resized to ``shorter_side``."""
    box = partial(crops.center_box, shorter_side=shorter_side, crop=crop)
    return View(indices, (crop, crop), box, partial(_fixed, (crop, crop)))


def square_view(indices: np.ndarray, side: int) -> View:
    """The central square of each photograph, resized to side x side."""
    return View(indices, (side, side), crops.central_square_box, partial(_fixed, (side, side)))


def whole_view(indices: np.ndarray, shorter_side: int, canvas: tuple[int, int]) -> View:
    """Each photograph whole, its shorter side resized to ``shorter_side``; ``canvas`` must hold all of them."""
    return View(indices, canvas, crops.whole_box, partial(resized_size, shorter_side=shorter_side))


def resized_size(height: int, width: int, shorter_side: int) -> tuple[int, int]:
    """(height, width) of a photograph whose shorter side becomes ``shorter_side``."""
    scale = shorter_side / min(height, width)
    return max(shorter_side, round(height * scale)), max(shorter_side, round(width * scale))


def _fixed(size: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    return size


def _per_step(batch_size: int, share: Share) -> int:
    """How many equal chunks, of at most ``_CHUNK`` photographs, make this process's part of a batch."""
    mine = batch_size // share.count
    return next(count for count in range(math.ceil(mine / _CHUNK), mine + 1) if mine % count == 0)


def _place(number: int, batch_size: int, share: Share) -> tuple[int, int]:
    """The first position of a chunk in the order of all examples, and its size."""
    step, part = divmod(number, _per_step(batch_size, share))
    mine = batch_size // share.count
    size = mine // _per_step(batch_size, share)
    return step * batch_size + share.index * mine + part * size, size


def _joined(make: TrainChunks | EvalChunks, start: int, stop: int, loading: Loading, limit: int) -> Iterator[Batch]:
    """Batches ``start`` to ``stop`` - 1 out of their chunks, which are made ahead of time."""
    per_step = _per_step(make.batch_size, make.share)
    chunks = grain.MapDataset.range(start * per_step, stop * per_step).map(make)
    # Two batches ahead, and a chunk in the making for each thread.
    options = grain.ReadOptions(num_threads=loading.threads, prefetch_buffer_size=2 * per_step + loading.threads)
    stream = chunks.to_iter_dataset(options)
    if loading.workers:
        if not flags.FLAGS.is_parsed():  # By a program of another's; Grain hands them to its processes.
            flags.FLAGS.mark_as_parsed()
        processes = grain.MultiprocessingOptions(num_workers=loading.workers, per_worker_buffer_size=4)
        stream = stream.mp_prefetch(processes, _begin_worker)
    seen: set[str] = set()
    parts = []
    with closing(iter(stream)) as iterator:  # Ends the threads and processes also when a run stops early.
        for part in iterator:
            _pass_over(part.pop("unreadable"), seen, limit)
            parts.append(part)
            if len(parts) == per_step:
                yield parts[0] if per_step == 1 else {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
                parts = []


def _begin_worker(index: int, count: int) -> None:
    """Ties a worker process to the run, which alone decides on stop signals, and may be killed."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _pass_over(unreadable: list[str], seen: set[str], limit: int) -> None:
    """Names on stderr what is new, and adds it to ``seen``. Raises UserError when those are more than ``limit``."""
    for name in unreadable:
        if name not in seen:
            seen.add(name)
            print(f"warning: {name} cannot be decoded and is passed over", file=sys.stderr)
    if len(seen) > limit:
        raise UserError(
            f"{len(seen)} photographs cannot be decoded, more than config.data.max_unreadable {limit}; mend them, or "
            f"raise it"
        )


def photograph_sizes(source: Source, loading: Loading, limit: int) -> np.ndarray:
    """(N, 2) heights and widths from the headers, 0 for a photograph that cannot be decoded.

    Names those as ``evaluation_batches`` does, and raises UserError for more than ``limit``.
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
            _pass_over([reason] if reason else [], seen, limit)
            sizes.append(found)
    return np.array(sizes, np.int32).reshape(-1, 2)
