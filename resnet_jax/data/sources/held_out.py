"""A validation split for photographs that have none: a part of the training split. Imports no jax."""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.data.sources.protocol import LabelledSource, Opened


class Selection:
    """Some photographs of a source, as a source. ``indices`` (N,) are their places in it. Can be pickled."""

    def __init__(self, source: LabelledSource, indices: np.ndarray) -> None:
        self._source = source
        self._indices = indices

    @property
    def shorter_side(self) -> int | None:
        return self._source.shorter_side

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self._source[int(self._indices[i])]

    def labels(self) -> np.ndarray:
        """(N,) int32."""
        return self._source.labels()[self._indices]

    def files(self) -> Sequence[Path]:
        """Those of the whole source."""
        return self._source.files()


def with_validation(opened: Opened, fraction: float) -> Opened:
    """``opened`` with a split "validation" of ``fraction`` of its training split, which loses it; says so on stderr.

    Where there is a validation or test split already, or too little to train on, or ``fraction`` is 0, it is returned
    as it is.
    """
    if not fraction or "train" not in opened.splits or {"validation", "test"} & set(opened.splits):
        return opened
    source = opened.open_split("train")
    held = held_out(source.labels(), fraction)
    if not held.any():
        return opened
    splits = {"train": Selection(source, np.flatnonzero(~held)), "validation": Selection(source, np.flatnonzero(held))}
    print(
        f"there is no validation split, so {held.sum()} of the {len(held)} training photographs are one "
        f"(config.data.validation_fraction={fraction:g} of each class, the same ones whatever the seed)",
        file=sys.stderr,
    )
    digest = hashlib.sha256(held.tobytes()).hexdigest()[:8]  # What is held out depends on the labels, too.
    return Opened(tuple(splits), splits.__getitem__, opened.class_names, f"-without-{fraction:g}-{digest}")


def held_out(labels: np.ndarray, fraction: float) -> np.ndarray:
    """(N,) bool: ``fraction`` of each class, rounded, but at least one where a class has two, at random.

    A function of the arguments alone. A class of one photograph keeps it for training.
    """
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held[np.random.default_rng((0, int(label))).permutation(members)[:count]] = True
    return held
