"""Average precision as PASCAL VOC defines it (Everingham et al. 2010, section 4.2; its development kits)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from resnet_jax.evaluation.detection.detections import Detections, Truth, overlaps


class ClassScore(NamedTuple):
    """The result of a class: its average precision in [0, 1], NaN where no object counts, and its curve.

    recall, precision: (n,), after each of the n detections, the surest first. num_objects: those not difficult.
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
    """The result of each class, from the objects and the detections of the same photographs.

    eleven_points: VOC 2007's average of eleven precisions; else the area under the curve, as from 2010 on.
    iou_threshold: an object is found where the overlap is above it.
    """
    scores = []
    for label in range(num_classes):
        hits, misses, num_objects = match_class(truth, detections, label, iou_threshold)
        recall, precision = precision_recall(hits, misses, num_objects)
        score = average_precision(recall, precision, eleven_points) if num_objects else float("nan")
        scores.append(ClassScore(score, recall, precision, num_objects))
    return scores


def mean_average_precision(scores: Sequence[ClassScore]) -> float:
    """Over the classes of which an object counts; NaN where there is none."""
    found = [score.average_precision for score in scores if score.num_objects]
    return float(np.mean(found)) if found else float("nan")


def match_class(
    truth: Truth, detections: Sequence[Detections], label: int, iou_threshold: float
) -> tuple[np.ndarray, np.ndarray, int]:
    """Whether each detection of a class, the surest first, is a true and whether it is a false positive.

    A detection goes with the object of its class that it overlaps most. It is true if that is more than
    ``iou_threshold`` and no surer detection has found the object; if the object is difficult, it is neither. Of equal
    scores the earlier photograph comes first. The last value is the number of objects that are not difficult.
    """
    if len(truth) != len(detections):
        raise ValueError(f"{len(truth)} photographs with objects, but {len(detections)} with detections")
    rows, num_objects = [], 0
    for image, (objects, found) in enumerate(zip(truth, detections, strict=True)):
        own, mine = objects.labels == label, found.labels == label
        difficult = objects.difficult[own]
        num_objects += int((~difficult).sum())
        scores = found.scores[mine]
        overlap = overlaps(found.boxes[mine], objects.boxes[own])
        for row, score in enumerate(scores):
            most = int(overlap[row].argmax()) if own.any() else -1
            near = most >= 0 and overlap[row, most] > iou_threshold
            rows.append((score, image, most if near else -1, bool(near and difficult[most])))
    rows.sort(key=lambda row: -row[0])
    hits, misses = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    taken: set[tuple[int, int]] = set()
    for place, (_, image, number, is_difficult) in enumerate(rows):
        if is_difficult:
            continue
        hits[place] = number >= 0 and (image, number) not in taken
        misses[place] = not hits[place]
        taken.add((image, number))
    return hits, misses, num_objects


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
