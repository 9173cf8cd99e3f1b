"""What a detector finds in a photograph, and the overlap of boxes, in NumPy."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from resnet_jax.data.sources.detection.protocol import Objects, ObjectTable

Truth = Sequence[Objects] | ObjectTable  # The objects of each photograph.


class Detections(NamedTuple):
    """n detections in one photograph, in any order."""

    boxes: np.ndarray
    """(n, 4), (x1, y1, x2, y2) in pixels of the photograph, continuous as in ``sources.detection.protocol``."""
    scores: np.ndarray
    """(n,), higher is surer."""
    labels: np.ndarray
    """(n,) int, from 0."""


def best(detections: Detections, count: int) -> Detections:
    """The ``count`` detections of the highest scores, the highest first; of equal ones the first."""
    order = np.argsort(-detections.scores, kind="stable")[:count]
    return Detections(*(values[order] for values in detections))


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n, m) the intersection over union of boxes (n, 4) and (m, 4); 0 where neither has an area.

    Continuous coordinates. That of VOC's development kit, whose corners are pixels counted from 1 and whose sides are
    x2 - x1 + 1, is the same for the same boxes: its corner (xmin, ymin) is (x1 + 1, y1 + 1) here.
    """
    boxes, others = np.asarray(boxes, np.float64), np.asarray(others, np.float64)
    shared = shared_areas(boxes, others)
    areas = [np.prod(np.maximum(given[:, 2:] - given[:, :2], 0), axis=1) for given in (boxes, others)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def shared_areas(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n, m) the intersection, in square pixels, of boxes (n, 4) and (m, 4)."""
    boxes, others = np.asarray(boxes, np.float64), np.asarray(others, np.float64)
    upper = np.maximum(boxes[:, None, :2], others[None, :, :2])
    lower = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.prod(np.maximum(lower - upper, 0), axis=2)
