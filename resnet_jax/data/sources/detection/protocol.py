"""What every place that photographs with boxes come from gives.

Boxes are (x1, y1, x2, y2) in pixels of the upright photograph, continuous: pixel column k covers [k, k + 1], so that a
box around the whole photograph is (0, 0, width, height) and areas need no "+ 1".
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np


class Objects(NamedTuple):
    """What is in one photograph: n objects."""

    boxes: np.ndarray
    """(n, 4) float64, (x1, y1, x2, y2) in pixels."""
    labels: np.ndarray
    """(n,) int32, from 0."""
    crowd: np.ndarray
    """(n,) bool: a region with many objects of the class (COCO)."""
    difficult: np.ndarray
    """(n,) bool: not counted in the evaluation (VOC)."""
    areas: np.ndarray
    """(n,) float64: of the outline where the data set has one (COCO), else of the box."""


@dataclass(frozen=True, eq=False)
class ObjectTable:
    """The objects of N photographs in one ``Objects``: those of photograph i are at starts[i] to starts[i + 1] - 1."""

    starts: np.ndarray
    objects: Objects

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> Objects:
        part = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return Objects(*(values[part] for values in self.objects))

    def __iter__(self) -> Iterator[Objects]:
        return (self[index] for index in range(len(self)))


class DetectionSource(Protocol):
    """Random access to the photographs of a split and their objects, from many threads. Can be pickled.

    A ``sources.protocol.Source`` whose labels are all 0: classes are of objects.
    """

    @property
    def shorter_side(self) -> int | None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image", "label": 0, "name"}."""

    def objects(self, index: int) -> Objects:
        """As they are annotated: boxes may leave the photograph, or have no area."""

    def image_id(self, index: int) -> int:
        """What the data set's own evaluation calls the photograph (COCO); elsewhere its place. Unique in the source,
        but for ``JoinedSource``."""

    def files(self) -> Sequence[Path]:
        """The files that hold photographs and annotations: where none of these changes, neither does an object."""


class OpenedDetection(NamedTuple):
    """Photographs with boxes, by the name of a split; a split is opened when it is needed.

    ``class_names`` are in label order. ``category_ids`` are what the data set's own files call the labels (COCO's run
    from 1 to 90, with gaps); elsewhere the labels.
    """

    open_split: Callable[[str], DetectionSource]
    class_names: list[str]
    category_ids: list[int]


def make_objects(boxes: Any, labels: Any, crowd: Any = None, difficult: Any = None, areas: Any = None) -> Objects:
    """``Objects`` out of sequences; without flags none is crowd or difficult, and areas are those of the boxes."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    none = np.zeros(len(boxes), bool)
    return Objects(
        boxes,
        np.asarray(labels, np.int32).reshape(-1),
        none if crowd is None else np.asarray(crowd, bool),
        none if difficult is None else np.asarray(difficult, bool),
        np.asarray(box_areas(boxes) if areas is None else areas, np.float64),
    )


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """Of boxes (n, 4)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def make_table(objects: Sequence[Objects]) -> ObjectTable:
    """The table of the objects of some photographs."""
    starts = np.cumsum([0, *(len(found.labels) for found in objects)])
    parts = [make_objects([], []), *objects]  # There may be none.
    return ObjectTable(starts, Objects(*(np.concatenate(column) for column in zip(*parts, strict=True))))
