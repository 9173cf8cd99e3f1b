"""Several splits one after the other, as VOC 2007 and 2012 are trained on together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.data.sources.detection.protocol import DetectionSource, Objects


class JoinedSource:
    """A ``DetectionSource`` of the photographs of all its parts, in their order."""

    shorter_side: int | None = None

    def __init__(self, parts: Sequence[DetectionSource]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _find(self, index: int) -> tuple[DetectionSource, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"photograph {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[number], index - int(self._ends[number]) + len(self._parts[number])

    def __getitem__(self, index: int) -> dict[str, Any]:
        part, place = self._find(index)
        return part[place]

    def objects(self, index: int) -> Objects:
        part, place = self._find(index)
        return part.objects(place)

    def image_id(self, index: int) -> int:
        """What its own part calls the photograph; another part may call another one the same."""
        part, place = self._find(index)
        return part.image_id(place)

    def files(self) -> list[Path]:
        return [path for part in self._parts for path in part.files()]
