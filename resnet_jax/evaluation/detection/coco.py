"""COCO's figures, by COCO's own code, pycocotools (the extra "detection")."""

import contextlib
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from resnet_jax.data.sources.detection.protocol import Objects
from resnet_jax.errors import UserError
from resnet_jax.evaluation.detection.detections import Detections, Truth, best

MAX_DETECTIONS = 100  # Of a photograph; COCO's rules allow no more.
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class CocoScores(NamedTuple):
    """COCO's twelve figures by name, in [0, 1], -1 where no object counts; AP and AP50 of each class, or NaN."""

    figures: dict[str, float]
    class_ap: np.ndarray
    class_ap50: np.ndarray


def coco_scores(
    truth: Truth,
    detections: Sequence[Detections],
    category_ids: Sequence[int],
    image_ids: Sequence[int] | None = None,
) -> CocoScores:
    """From the objects and the detections of the same photographs, of which the 100 surest count.

    category_ids: what COCO calls each label. image_ids: what it calls each photograph; None: their places. Detections
    in crowds are neither right nor wrong; sizes are by ``Objects.areas``. "difficult" is VOC's and has no effect.

    Raises UserError where pycocotools is not installed, and ValueError where two photographs have the same id.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise UserError("COCO's figures need pycocotools; pip install pycocotools") from None
    if len(truth) != len(detections):
        raise ValueError(f"{len(truth)} photographs with objects, but {len(detections)} with detections")
    ids = list(range(len(truth))) if image_ids is None else [int(one) for one in image_ids]
    shared = {"images": [{"id": one} for one in ids], "categories": [{"id": int(one)} for one in category_ids]}
    objects = [
        row | {"area": float(area), "iscrowd": int(crowd)}
        for one, found in zip(ids, truth, strict=True)
        for row, area, crowd in zip(_rows(one, found, category_ids), found.areas, found.crowd, strict=True)
    ]
    results = [
        row | {"area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
        for row in coco_results(detections, category_ids, ids)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        pair = []
        for annotations in (objects, results):
            pair.append(coco := COCO())
            # Ids from 1: COCOeval takes 0 for no match.
            numbered = [row | {"id": number} for number, row in enumerate(annotations, 1)]
            coco.dataset = {**shared, "annotations": numbered}
            coco.createIndex()
        evaluation = COCOeval(*pair, iouType="bbox")
        evaluation.params.imgIds = sorted(ids)
        evaluation.params.catIds = sorted(int(one) for one in category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = dict(zip(FIGURES, map(float, evaluation.stats), strict=True))
    # IoU thresholds, recalls, classes by id, sizes (the first is all), numbers of detections (the last is 100).
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    by_label = precision[:, :, np.argsort(np.argsort(category_ids))]
    return CocoScores(figures, _means(by_label), _means(by_label[:1]))


def coco_results(
    detections: Sequence[Detections], category_ids: Sequence[int], image_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """COCO's format of results, for its evaluation server: {"image_id", "category_id", "bbox", "score"} of each.

    Boxes are (x, y, width, height). The 100 surest detections of each photograph. Raises ValueError where two
    photographs have the same id.
    """
    repeated = [one for one, count in Counter(image_ids).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{len(repeated)} of the image_ids, such as {repeated[0]}, are of several photographs; give each its own, "
            f"such as its place"
        )
    return [
        row | {"score": float(score)}
        for one, found in zip(image_ids, (best(each, MAX_DETECTIONS) for each in detections), strict=True)
        for row, score in zip(_rows(one, found, category_ids), found.scores, strict=True)
    ]


def _rows(image_id: int, found: Objects | Detections, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {
            "image_id": int(image_id),
            "category_id": int(category_ids[label]),
            "bbox": [float(x1), float(y1), float(x2) - float(x1), float(y2) - float(y1)],
        }
        for (x1, y1, x2, y2), label in zip(found.boxes, found.labels, strict=True)
    ]


def _means(precision: np.ndarray) -> np.ndarray:
    """(K,) the mean over thresholds and recalls of (T, R, K), NaN for a class of which no object counts (-1)."""
    return np.where((precision > -1).any(axis=(0, 1)), precision.mean(axis=(0, 1)), np.nan)
