"""Chunks of photographs with boxes, whole on canvases or cropped; see ``data.chunks``. Imports no jax."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from resnet_jax.data.chunks import EvalChunks, PhotographView, first_readable, place
from resnet_jax.data.crops import Crop
from resnet_jax.data.dataset import Share
from resnet_jax.data.decode.boxes import Box, Whole, whole_box
from resnet_jax.data.decode.images import crop_and_resize, image_size
from resnet_jax.data.detection.placing import place_objects, scale_of, seen_in
from resnet_jax.data.order import GroupedOrder
from resnet_jax.data.sources.detection.protocol import DetectionSource, ObjectTable, make_objects

# Whole photographs are ten times as large as crops, and batches smaller.
CHUNK = 4


@dataclass(frozen=True, eq=False)
class AnnotatedPhotographs:
    """The photographs of a split, their sizes (N, 2), 0 where they cannot be decoded, and their objects."""

    source: DetectionSource
    sizes: np.ndarray
    table: ObjectTable

    def size(self, index: int) -> tuple[int, int]:
        """(height, width)."""
        return int(self.sizes[index, 0]), int(self.sizes[index, 1])


@dataclass(frozen=True, eq=False)
class DetectionTrainChunks:
    """Chunk number -> the arrays of ``DetectionDataset.training_batches``, in the order of training.

    examples: (M,) the photographs that are trained on; ``order.groups`` are their groups, one for each of ``canvases``.
    crop: cut out of each and resized to its canvas; None: photographs are whole.
    A photograph that cannot be decoded is listed in "unreadable" and the next one of its group takes its place.
    """

    photographs: AnnotatedPhotographs
    examples: np.ndarray
    order: GroupedOrder
    canvases: list[tuple[int, int]]
    short_sides: tuple[int, ...]
    max_side: int
    flip: float
    max_boxes: int
    share: Share
    crop: Crop | None = None
    chunk: int = CHUNK

    @property
    def batch_size(self) -> int:
        return self.order.batch_size

    def __call__(self, number: int) -> dict[str, Any]:
        first, size = place(self, number)
        step, row = divmod(first, self.batch_size)
        group, examples = self.order.batch(step)
        members = np.flatnonzero(self.order.groups == group)
        images = np.zeros((size, *self.canvases[group], 3), np.uint8)
        unreadable: list[str] = []
        # Random in the place in the run, not of the chunk: nothing depends on the number of processes.
        rows = [
            self._read_into(image, members, example, np.random.default_rng((self.order.seed, position)), unreadable)
            for image, example, position in zip(
                images, examples[row : row + size], range(first, first + size), strict=True
            )
        ]
        return {"image": images, **_stacked(rows), "unreadable": unreadable}

    def _read_into(
        self, image: np.ndarray, members: np.ndarray, example: int, rng: np.random.Generator, unreadable: list[str]
    ) -> dict[str, Any]:
        """Fills ``image`` from the first readable member of the group from ``example`` on, and gives the rest."""
        short_side = self.short_sides[rng.integers(len(self.short_sides))]
        mirrored = bool(rng.random() < self.flip)
        start = int(np.searchsorted(members, example))
        candidates = (int(self.examples[members[(start + i) % len(members)]]) for i in range(len(members)))

        def read(record: dict[str, Any]) -> tuple[Box, tuple[int, int]]:
            size = image_size(record["image"])
            if self.crop is None:
                box, (height, width) = whole_box(*size), Whole(short_side, self.max_side).resized(*size)
            else:
                box, (height, width) = self.crop.box(rng, *size, len(image)), image.shape[:2]
            pixels = crop_and_resize(record["image"], lambda *_: box, (height, width), fast=True)
            image[:height, :width] = pixels[:, ::-1] if mirrored else pixels
            return box, (height, width)

        index, (box, resized) = first_readable(self.photographs.source, candidates, read, unreadable)
        objects = seen_in(self.photographs.table[index], box)
        return {
            "image_hw": np.array(resized, np.int32),
            "scale": scale_of(box[2:], resized),
            **place_objects(objects, box[2:], resized, mirrored, self.max_boxes),
            "index": np.int32(index),
        }


@dataclass(frozen=True, eq=False)
class DetectionEvalChunks:
    """Chunk number -> the arrays of ``DetectionDataset.evaluation_batches``, and "unreadable"."""

    photographs: AnnotatedPhotographs
    view: PhotographView
    max_boxes: int
    batch_size: int
    share: Share
    chunk: int = CHUNK

    def __call__(self, number: int) -> dict[str, Any]:
        source = self.photographs.source
        batch = EvalChunks(source, self.view, self.batch_size, self.share, self.chunk)(number)
        found = batch.pop("label") >= 0
        indices, sizes = np.where(found, batch.pop("index"), -1).astype(np.int32), batch.pop("size")
        rows = []
        for index, resized in zip(indices.tolist(), sizes.tolist(), strict=True):
            box = self.view.look.box(*self.photographs.size(index)) if index >= 0 else (0, 0, 1, 1)
            objects = self.photographs.table[index] if index >= 0 else make_objects([], [])
            placed = place_objects(seen_in(objects, box), box[2:], tuple(resized), False, self.max_boxes)
            rows.append({"image_hw": np.array(resized, np.int32), "scale": scale_of(box[2:], tuple(resized)), **placed})
        return {"image": batch["image"], **_stacked(rows), "index": indices, "unreadable": batch["unreadable"]}


def _stacked(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}
