"""Photographs with boxes as a data set: what is trained on, on what canvas, and what an evaluation sees."""

import math
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from tqdm import tqdm

from resnet_jax.data.cache import cached_arrays
from resnet_jax.data.chunks import (
    PhotographView,
    evaluation_loading,
    make_batches,
    photograph_sizes,
    training_loading,
)
from resnet_jax.data.dataset import Batch, Share
from resnet_jax.data.decode.boxes import CentralCrop, Whole
from resnet_jax.data.detection.chunks import AnnotatedPhotographs, DetectionEvalChunks, DetectionTrainChunks
from resnet_jax.data.detection.part import DetectionData
from resnet_jax.data.detection.placing import canvas_groups
from resnet_jax.data.normalization import IMAGENET_STATISTICS, Statistics
from resnet_jax.data.order import GroupedOrder
from resnet_jax.data.sources.detection.joined import JoinedSource
from resnet_jax.data.sources.detection.protocol import Objects, ObjectTable, OpenedDetection, make_table
from resnet_jax.errors import UserError

if TYPE_CHECKING:
    import jax


@dataclass(frozen=True, eq=False)
class DetectionDataset:
    """Photographs with boxes, opened, and how they are resized and loaded; see ``dataset.Dataset``.

    A split is opened when it is first needed, with a line on stderr that says what of it is left out. Its photographs
    keep their places ("index") whatever is left out.
    """

    opened: OpenedDetection
    settings: DetectionData
    _splits: dict[str, AnnotatedPhotographs] = field(default_factory=dict, init=False, repr=False)

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def class_names(self) -> list[str]:
        return self.opened.class_names

    @property
    def category_ids(self) -> list[int]:
        """What the data set's own files call each label."""
        return self.opened.category_ids

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the canvas of training images, the lying one where there are two; of crops their size."""
        return *self.training_canvases[0], 3

    @property
    def training_canvases(self) -> list[tuple[int, int]]:
        """(height, width) of each canvas of training batches: one or two."""
        return self._groups()[1]

    @property
    def crop_size(self) -> int:
        """Pixels of the shorter side in evaluation."""
        return self.settings.evaluation_side

    @property
    def num_train(self) -> int:
        """Photographs that are trained on: those that can be decoded and, unless keep_empty is set, hold an object."""
        return len(self._examples())

    @property
    def evaluation_split(self) -> str:
        return "validation" if self.settings.validation else "test"

    @property
    def test_split(self) -> str:
        return "test" if self.settings.test else "validation"

    def photographs(self, split: str) -> AnnotatedPhotographs:
        """The photographs themselves, with their objects; boxes without area are left out.

        Boxes that leave the photograph stay as they are annotated, for evaluations; in batches they are clipped. Raises
        UserError for a split that does not exist, or that is not found.
        """
        if split not in self._splits:
            parts = {"train": self.settings.train, "validation": self.settings.validation, "test": self.settings.test}
            if not parts.get(split):
                known = " or ".join(name for name, given in parts.items() if given)
                raise UserError(f"{self.name} has no split {split!r}; use {known}, or set config.data.{split}")
            self._splits[split] = self._open(split, parts[split])
        return self._splits[split]

    def _open(self, split: str, parts: Sequence[str]) -> AnnotatedPhotographs:
        source = JoinedSource([self.opened.open_split(part) for part in parts])

        def scan() -> tuple[np.ndarray, ...]:
            loading = evaluation_loading(self.settings.threads)
            sizes = photograph_sizes(source, loading, self.settings.max_unreadable)
            bar = tqdm(range(len(source)), "objects", unit=" images", delay=1, leave=False)
            table = make_table([source.objects(index) for index in bar])
            return sizes, table.starts, *table.objects

        files = source.files()
        # Labels depend on the classes, and places on the order of the parts, which the files do not tell.
        mark = zlib.crc32(repr((parts, self.class_names)).encode())
        keys = ("sizes", "starts", *Objects._fields)
        name = f"{self.name}-{split}-objects-{mark:08x}"
        sizes, starts, *columns = cached_arrays(name, files, scan, keys=keys) if files else scan()
        table, dropped, outside = _with_area(ObjectTable(starts, Objects(*columns)), sizes)
        found = AnnotatedPhotographs(source, sizes, table)
        self._report(split, found, dropped, outside)
        return found

    def _report(self, split: str, found: AnnotatedPhotographs, dropped: int, outside: int) -> None:
        counts = np.diff(found.table.starts)
        facts = {
            "without area left out": dropped,
            "clipped to the photograph": outside,
            f"beyond data.max_boxes {self.settings.max_boxes}": int(
                np.maximum(0, counts - self.settings.max_boxes).sum()
            ),
        }
        boxes = "".join(f", {count} {fact}" for fact, count in facts.items() if count)
        unreadable = int((found.sizes[:, 0] == 0).sum())
        print(
            f"{self.name} {split}: {len(counts)} photographs ({int((counts == 0).sum())} without objects, {unreadable} "
            f"that cannot be decoded), {int(counts.sum())} boxes{boxes}",
            file=sys.stderr,
        )

    def count(self, split: str) -> int:
        """Photographs of a split, with those that are not trained on."""
        return len(self.photographs(split).source)

    def example_name(self, split: str, index: int) -> str:
        return self.photographs(split).source[index]["name"]

    def image_id(self, split: str, index: int) -> int:
        """What the data set's own files call a photograph (COCO); elsewhere its place in its part of the split.

        Photographs of two parts may have the same.
        """
        return self.photographs(split).source.image_id(index)

    def ground_truth(self, split: str) -> ObjectTable:
        """What ``evaluation.detection`` compares detections with: the objects of each photograph of a split.

        In pixels of the photographs, all of them, none clipped.
        """
        return self.photographs(split).table

    def resident(self, split: str) -> None:
        return None

    def gather(self, resident: None, batch: dict[str, "jax.Array"]) -> dict[str, "jax.Array"]:
        return batch

    def _examples(self) -> np.ndarray:
        """(M,) the photographs that are trained on."""
        found = self.photographs("train")
        wanted = found.sizes[:, 0] > 0
        if not self.settings.keep_empty:
            owners = np.repeat(np.arange(len(found.table)), np.diff(found.table.starts))
            wanted &= np.isin(np.arange(len(wanted)), owners[~found.table.objects.crowd])
        if not wanted.any():
            raise UserError(
                f"no photograph of {', '.join(self.settings.train)} has an object; correct config.data.train"
            )
        return np.flatnonzero(wanted)

    def _groups(self) -> tuple[np.ndarray, list[tuple[int, int]]]:
        if self.settings.training_crop is not None:
            side = self.settings.crop_size
            return np.zeros(len(self._examples()), np.int32), [(side, side)]
        sizes = self.photographs("train").sizes[self._examples()]
        largest = Whole(max(self.settings.short_sides), self.settings.max_side)
        return canvas_groups(sizes, largest, self.settings.canvas_stride)

    def training_batches(self, seed: int, batch_size: int, start: int, stop: int, share: Share) -> Iterator[Batch]:
        """The batches of ``order.GroupedOrder``: each holds photographs of one canvas, (H, W), and G = max_boxes.

        - "image" (B, H, W, 3) uint8: the photograph, resized and maybe mirrored, at the top left of zeros; or its crop;
        - "image_hw" (B, 2) int32: its height and width there, and "scale" (B, 2) float32: by how much they have grown;
        - "boxes" (B, G, 4) float32, (x1, y1, x2, y2) in pixels of the canvas, and "labels" (B, G) int32, from 0;
        - "crowd", "difficult", "valid" (B, G) bool: "valid" is false where there is no object, or none in the crop;
        - "index" (B,) int32: the photograph's place in the split.

        Names each photograph that cannot be decoded on stderr, and the next one of its canvas takes its place. Raises
        UserError when there are more of those than max_unreadable.
        """
        groups, canvases = self._groups()
        settings = self.settings
        chunks = DetectionTrainChunks(
            self.photographs("train"),
            self._examples(),
            GroupedOrder(seed, batch_size, groups),
            canvases,
            settings.short_sides,
            settings.max_side,
            settings.flip,
            settings.max_boxes,
            share,
            settings.training_crop,
        )
        loading = training_loading(settings.threads, settings.workers)
        return make_batches(chunks, start, stop, loading, settings.max_unreadable)

    def evaluation_batches(self, split: str, view: PhotographView, batch_size: int, share: Share) -> Iterator[Batch]:
        """As in ``training_batches``; "index" is -1 where there is no photograph, or one that cannot be decoded.

        "boxes" are clipped, and at most max_boxes; figures are to be computed from ``ground_truth``.
        """
        chunks = DetectionEvalChunks(self.photographs(split), view, self.settings.max_boxes, batch_size, share)
        steps = math.ceil(view.count / batch_size)
        return make_batches(chunks, 0, steps, evaluation_loading(self.settings.threads), self.settings.max_unreadable)

    def whole_views(self, split: str, shorter_side: int | None = None) -> list[PhotographView]:
        """Each photograph that can be decoded once, whole, in one view for each of the one or two canvases.

        ``shorter_side`` is by default ``crop_size``, as in evaluation; the longer side then has at most max_side
        pixels, and in proportion at another.
        """
        found, look = self.photographs(split), self.settings.whole
        look = look.at(shorter_side or look.shorter_side)
        readable = np.flatnonzero(found.sizes[:, 0])
        groups, canvases = canvas_groups(found.sizes[readable], look, self.settings.canvas_stride)
        return [PhotographView(readable[groups == group], canvas, look) for group, canvas in enumerate(canvases)]

    def single_view(self, split: str) -> PhotographView:
        """The central crop_size x crop_size pixels of each that can be decoded, the shorter side resized as evaluated.

        Raises UserError where photographs are whole in training.
        """
        if self.settings.training_crop is None:
            raise UserError(f"{self.name} is not seen by crops, because config.data.training_crop is not set; set it")
        readable, crop = np.flatnonzero(self.photographs(split).sizes[:, 0]), self.settings.crop_size
        return PhotographView(readable, (crop, crop), CentralCrop(self.settings.evaluation_side, crop))

    def square_view(self, split: str) -> NoReturn:
        """Raises UserError: no evaluation of boxes takes ten crops."""
        raise UserError(f"{self.name} has boxes and is not scored by ten crops; choose a data set for classification")

    def mean_image(self) -> NoReturn:
        """Raises UserError: photographs of any shape have none."""
        raise UserError("photographs with boxes have no per-pixel mean; set config.normalization.name=channel")

    def channel_statistics(self) -> Statistics:
        """ImageNet's."""
        return IMAGENET_STATISTICS


def _with_area(table: ObjectTable, sizes: np.ndarray) -> tuple[ObjectTable, int, int]:
    """The table without boxes of no area within their photograph, how many those are, and how many leave it."""
    counts = np.diff(table.starts)
    owners = np.repeat(np.arange(len(counts)), counts)
    boxes, (height, width) = table.objects.boxes, sizes[owners].T
    inside = np.clip(boxes, 0, np.stack([width, height, width, height], axis=1))
    kept = ((inside[:, 2:] > inside[:, :2]) | (height == 0)[:, None]).all(axis=1)
    outside = kept & (inside != boxes).any(axis=1) & (height > 0)
    starts = np.cumsum([0, *np.bincount(owners[kept], minlength=len(counts))])
    return (
        ObjectTable(starts, Objects(*(values[kept] for values in table.objects))),
        int((~kept).sum()),
        int(outside.sum()),
    )
