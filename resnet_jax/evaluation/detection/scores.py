"""The figures of what was found in a split, by VOC's, COCO's or ImageNet's rules."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from resnet_jax.data.detection.dataset import DetectionDataset
from resnet_jax.errors import UserError
from resnet_jax.evaluation.detection.coco import coco_scores
from resnet_jax.evaluation.detection.detections import best, overlaps
from resnet_jax.evaluation.detection.detector import Found
from resnet_jax.evaluation.detection.voc import ClassScore, imagenet_scores, mean_average_precision, voc_scores

Metric: TypeAlias = Literal["voc07", "voc", "coco", "imagenet"]


class Scored(NamedTuple):
    """figures: by name, in percent; "mAP" is the metric's own mean average precision.

    classes: of each class its result by VOC's rules at an overlap of 0.5, or by ImageNet's; none of proposals. more:
    further figures of each class, in [0, 1], by name.
    """

    figures: dict[str, float]
    classes: list[ClassScore]
    more: Mapping[str, Sequence[float] | np.ndarray]
    found: Found


def score(found: Found, dataset: DetectionDataset, split: str, metric: Metric) -> Scored:
    """By "voc07", VOC's average precision of eleven points, "voc", the area, "coco", or "imagenet" (its DET task).

    COCO's are "mAP" (over overlaps from 0.5 to 0.95), "AP50", "AP75", and so on, without those of sizes of which there
    is no object. Raises UserError if no photograph can be decoded, or where none has an object that counts.
    """
    table = dataset.ground_truth(split)
    truth = [table[index] for index in found.indices]
    if not truth:
        raise UserError(f"no photograph of the split {split!r} can be decoded; correct config.data_dir")
    more: dict[str, list[float]] = {}
    if metric == "imagenet":
        classes = imagenet_scores(truth, found.detections, len(dataset.class_names))
    else:
        classes = voc_scores(truth, found.detections, len(dataset.class_names), metric == "voc07")
    figures = {"mAP": mean_average_precision(classes)}
    if metric == "coco":
        # Photographs are told apart by their places: in a split of several parts, two may have the same id.
        coco = coco_scores(truth, found.detections, dataset.category_ids)
        named = {"mAP" if name == "AP" else name: value for name, value in coco.figures.items()}
        figures = {name: value for name, value in named.items() if value >= 0}  # -1: there is no such object.
        more = {"coco_ap": coco.class_ap.tolist(), "coco_ap50": coco.class_ap50.tolist()}
    if np.isnan(figures.get("mAP", np.nan)):
        raise UserError(f"no photograph of the split {split!r} has an object that counts; choose another split")
    return Scored({name: 100 * value for name, value in figures.items()}, classes, more, found)


def recalled(
    found: Found, dataset: DetectionDataset, split: str, count: int = 100, iou_threshold: float = 0.5
) -> Scored:
    """ "recall": the percentage of objects that one of the ``count`` best regions of their photograph overlaps enough.

    Regions are of any class; crowds and difficult objects do not count. Raises UserError as ``score`` does.
    """
    table = dataset.ground_truth(split)
    hits = []
    for index, regions in zip(found.indices, found.detections, strict=True):
        objects = table[index]
        counted = ~(objects.crowd | objects.difficult)
        shared = overlaps(best(regions, count).boxes, objects.boxes[counted])
        hits.append((shared >= iou_threshold).any(axis=0))
    total = np.concatenate(hits) if hits else np.zeros(0)
    if not len(total):
        raise UserError(f"no photograph of the split {split!r} has an object that counts; choose another split")
    return Scored({"recall": 100 * float(total.mean())}, [], {}, found)
