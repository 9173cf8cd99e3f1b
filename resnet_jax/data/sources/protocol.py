"""What every place that images come from gives."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
"""What the splits are called by those who write folders, tables and data sets."""


class Source(Protocol):
    """Random access to the photographs of a split, from many threads at a time. A source can be pickled.

    Each is {"image": an encoded file's bytes or (H, W, 3) uint8 pixels, "label": int, "name": str for people}.
    ``shorter_side`` is the most pixels that their shorter sides have where they were reduced, else None.
    """

    @property
    def shorter_side(self) -> int | None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def files(self) -> Sequence[Path]:
        """The files that hold them: where none of these changes, neither does a photograph."""


class LabelledSource(Source, Protocol):
    """A source that can tell all labels at once."""

    def labels(self) -> np.ndarray:
        """(N,) int32, without reading the photographs where that is possible."""


class Opened(NamedTuple):
    """Photographs of any size, by split; a split is opened when it is needed. ``class_names`` are in label order.

    ``part`` tells training splits apart that are different parts of the same files; "" for all of them.
    """

    splits: tuple[str, ...]
    open_split: Callable[[str], LabelledSource]
    class_names: list[str]
    part: str = ""


class Split(NamedTuple):
    """Images (N, H, W, C) uint8 and labels (N,) int32, on the host or on the devices."""

    images: Any
    labels: Any


class Images(NamedTuple):
    """Images of one size in memory, by split; ``class_names`` are in label order."""

    splits: dict[str, Split]
    class_names: list[str]
