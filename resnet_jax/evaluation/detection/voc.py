"""Average precision as PASCAL VOC and ImageNet DET define it.

Everingham et al. 2010, section 4.2, and VOC's development kits; Russakovsky et al. 2015 (arXiv 1409.0575), section 4.3.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from resnet_jax.data.sources.detection.protocol import Objects, box_areas
from resnet_jax.evaluation.detection.detections import Detections, Truth, best, overlaps, shared_areas

Matching = Callable[[Objects, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""``(objects, overlaps (n, m)) -> (object (n,), near (n,) bool)`` of one photograph: which of its m objects each of n
detections is for, and whether it is near enough. Detections come the surest first; overlaps with objects of other
classes and with crowds are given as 0."""


class ClassScore(NamedTuple):
    """The result of a class: its average precision in [0, 1], NaN where no object counts, and its curve.

    recall, precision: (n,), after each of the n detections, the surest first. num_objects: those that count, neither
    difficult nor crowds.
    """

    average_precision: float
    recall: np.ndarray
    precision: np.ndarray
    num_objects: int


def voc_scores(
    truth: Truth,
    detections: Sequence[Detections],
    num_classes: int,
    eleven_points: bool,
    iou_threshold: float = 0.5,
) -> list[ClassScore]:
    """The result of each class by VOC's rules, from the objects and the detections of the same photographs.

    A detection goes with the object of its class that it overlaps most. It is true if that is more than
    ``iou_threshold`` and no surer detection has found the object; if the object is difficult, it is neither true nor
    false. VOC has no crowds (``Objects.crowd``): here no detection goes with one, and none is false of which a part of
    more than ``iou_threshold`` lies in a crowd of its class. Of equal scores the earlier photograph comes first.

    eleven_points: VOC 2007's average of eleven precisions; else the area under the curve, as from 2010 on.
    """

    def most(objects: Objects, overlap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        chosen = overlap.argmax(axis=1)
        return chosen, overlap[np.arange(len(overlap)), chosen] > iou_threshold

    return _class_scores(truth, detections, num_classes, most, eleven_points, iou_threshold)


def imagenet_scores(truth: Truth, detections: Sequence[Detections], num_classes: int) -> list[ClassScore]:
    """The result of each class by the rules of ImageNet's detection task; the average precision is the area.

    It differs from ``voc_scores`` in two ways. An object of w x h pixels is found from an overlap of
    min(0.5, w h / ((w + 10) (h + 10))) on, which is less than 0.5 for small ones. And a detection goes with the object
    that it overlaps most of those that it finds and no surer detection has found. Difficult objects and crowds are
    neither, as in ``voc_scores``. The list of pairs of a photograph and a class that the challenge leaves out is not
    read.
    """
    return _class_scores(truth, detections, num_classes, _free, False, 0.5)


def _free(objects: Objects, overlap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    width, height = (objects.boxes[:, 2:] - objects.boxes[:, :2]).T
    enough = overlap >= np.minimum(0.5, width * height / ((width + 10) * (height + 10)))
    chosen, near = np.zeros(len(overlap), np.intp), enough.any(axis=1)
    free = np.ones(len(objects.labels), bool)
    for row in np.flatnonzero(near):
        candidates = np.where(enough[row] & free, overlap[row], 0)
        chosen[row] = candidates.argmax()
        near[row] = candidates[chosen[row]] > 0
        if near[row]:
            free[chosen[row]] = objects.difficult[chosen[row]]
    return chosen, near


def mean_average_precision(scores: Sequence[ClassScore]) -> float:
    """Over the classes of which an object counts; NaN where there is none."""
    found = [score.average_precision for score in scores if score.num_objects]
    return float(np.mean(found)) if found else float("nan")


def _class_scores(
    truth: Truth,
    detections: Sequence[Detections],
    num_classes: int,
    matching: Matching,
    eleven_points: bool,
    crowd_threshold: float,
) -> list[ClassScore]:
    if len(truth) != len(detections):
        raise ValueError(f"{len(truth)} photographs with objects, but {len(detections)} with detections")
    counts = np.zeros(num_classes, int)
    columns: list[list[np.ndarray]] = [[np.zeros(0, kind) for kind in (float, int, bool, bool)]]
    # All classes of a photograph at once: a loop over the classes as well would take minutes on COCO.
    for objects, given in zip(truth, detections, strict=True):
        counts += np.bincount(objects.labels[~(objects.crowd | objects.difficult)], minlength=num_classes)
        found = best(given, len(given.scores))
        columns.append([found.scores, found.labels, *_hits_and_misses(objects, found, matching, crowd_threshold)])
    scores, labels, hits, misses = (np.concatenate(column) for column in zip(*columns, strict=True))
    order = np.lexsort((-scores, labels))  # Stable: of equal scores the earlier photograph first.
    ends = np.searchsorted(labels[order], np.arange(num_classes + 1))
    results = []
    for label, count in enumerate(counts.tolist()):
        own = order[ends[label] : ends[label + 1]]
        recall, precision = precision_recall(hits[own], misses[own], count)
        score = average_precision(recall, precision, eleven_points) if count else float("nan")
        results.append(ClassScore(score, recall, precision, count))
    return results


def _hits_and_misses(
    objects: Objects, found: Detections, matching: Matching, crowd_threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each detection of a photograph, the surest first, is a true and whether it is a false positive."""
    if not len(objects.labels):
        return np.zeros(len(found.scores), bool), np.ones(len(found.scores), bool)
    same = found.labels[:, None] == objects.labels
    chosen, near = matching(objects, np.where(same & ~objects.crowd, overlaps(found.boxes, objects.boxes), 0))
    neither = near & objects.difficult[chosen]
    hits = np.zeros(len(near), bool)
    candidates = np.flatnonzero(near & ~neither)
    hits[candidates[np.unique(chosen[candidates], return_index=True)[1]]] = True  # The first of each object.
    if objects.crowd.any():
        # COCO's overlap with a crowd: the part of the detection that lies in it.
        inside, area = shared_areas(found.boxes, objects.boxes[objects.crowd]), box_areas(found.boxes)[:, None]
        neither |= ~hits & (same[:, objects.crowd] & (inside > crowd_threshold * area)).any(axis=1)
    return hits, ~hits & ~neither


def precision_recall(hits: np.ndarray, misses: np.ndarray, num_objects: int) -> tuple[np.ndarray, np.ndarray]:
    """(recall, precision) after each detection, of which each is a true or a false positive or neither."""
    found, wrong = np.cumsum(hits), np.cumsum(misses)
    return found / max(num_objects, 1), found / np.maximum(found + wrong, 1)


def average_precision(recall: np.ndarray, precision: np.ndarray, eleven_points: bool) -> float:
    """Of a curve, in [0, 1]: the mean of the best precisions at recalls of at least 0, 0.1, ..., 1, or the area.

    The area is that under the curve made monotone: at each recall the best precision at it or beyond.
    """
    if eleven_points:
        # Recalls are fractions such as 3 / 10, tenths not exactly those.
        reached = [precision[recall >= tenth / 10 - 1e-9] for tenth in range(11)]
        return sum(float(values.max(initial=0)) for values in reached) / 11
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0) * envelope))
