"""The figures of a split by each metric, from what was found in its photographs."""

import numpy as np
import pytest

from resnet_jax.data import DetectionData
from resnet_jax.data.detection.dataset import DetectionDataset
from resnet_jax.data.sources.detection.protocol import OpenedDetection, make_objects
from resnet_jax.errors import UserError
from resnet_jax.evaluation.detection.detections import Detections
from resnet_jax.evaluation.detection.detector import Found
from resnet_jax.evaluation.detection.scores import recalled, score


class Source:
    """Photographs of 100 x 100 pixels with given objects, called 7, 8, ... as another source's are."""

    shorter_side = None

    def __init__(self, *objects):
        self.given = objects

    def __len__(self):
        return len(self.given)

    def __getitem__(self, index):
        return {"image": np.zeros((100, 100, 3), np.uint8), "label": 0, "name": f"{index}.png"}

    def objects(self, index):
        return self.given[index]

    def image_id(self, index):
        return 7 + index

    def files(self):
        return []


def dataset(*parts):
    sources = {str(number): part for number, part in enumerate(parts)}
    settings = DetectionData(train=("0",), validation=tuple(sources), test=(), short_sides=(100,), max_side=100)
    return DetectionDataset(OpenedDetection(sources.__getitem__, ["cat", "dog"], [1, 2]), settings)


def found(*boxes):
    """In each photograph one box of the first class, and none where it is None."""
    each = [np.reshape([] if box is None else box, (-1, 4)).astype(np.float32) for box in boxes]
    detections = [Detections(box, np.full(len(box), 0.9), np.zeros(len(box), int)) for box in each]
    return Found(list(range(len(boxes))), detections, 0, set())


CORNERS = [(0, 0, 40, 40), (50, 0, 90, 40), (0, 50, 40, 90), (50, 50, 90, 90)]


@pytest.mark.parametrize("metric", ["voc07", "voc", "coco", "imagenet"])
def test_photographs_of_joined_parts_are_told_apart_whatever_their_ids(metric):
    if metric == "coco":
        pytest.importorskip("pycocotools", reason="needs pycocotools: pip install pycocotools")
    parts = [Source(*(make_objects([box], [0]) for box in boxes)) for boxes in (CORNERS[:2], CORNERS[2:])]
    data = dataset(*parts)
    assert [data.image_id("validation", index) for index in range(4)] == [7, 8, 7, 8]
    assert score(found(*CORNERS), data, "validation", metric).figures["mAP"] == pytest.approx(100)
    exchanged = found(*CORNERS[2:], *CORNERS[:2])  # Each of the other part's photograph of the same id.
    assert score(exchanged, data, "validation", metric).figures["mAP"] == 0


def test_coco_s_figures_are_without_sizes_of_which_there_is_no_object():
    pytest.importorskip("pycocotools", reason="needs pycocotools: pip install pycocotools")
    data = dataset(Source(make_objects([CORNERS[0]], [0])))  # 1,600 square pixels: of medium size.
    figures = score(found(CORNERS[0]), data, "validation", "coco").figures
    assert figures == {
        name: pytest.approx(100) for name in ("mAP", "AP50", "AP75", "APm", "AR1", "AR10", "AR100", "ARm")
    }


@pytest.mark.parametrize("metric", ["voc", "coco", "imagenet"])
def test_a_split_of_nothing_but_crowds_has_no_object_that_counts(metric):
    if metric == "coco":
        pytest.importorskip("pycocotools", reason="needs pycocotools: pip install pycocotools")
    data = dataset(Source(make_objects([CORNERS[0]], [0], crowd=[True])))
    with pytest.raises(UserError, match="no photograph of the split 'validation' has an object that counts"):
        score(found(CORNERS[0]), data, "validation", metric)
    with pytest.raises(UserError, match="has an object that counts"):
        recalled(found(CORNERS[0]), data, "validation")


def test_difficult_objects_count_for_coco_alone():
    pytest.importorskip("pycocotools", reason="needs pycocotools: pip install pycocotools")
    data = dataset(Source(make_objects([CORNERS[0]], [0], difficult=[True])))
    assert score(found(CORNERS[0]), data, "validation", "coco").figures["mAP"] == pytest.approx(100)
    with pytest.raises(UserError, match="has an object that counts"):
        score(found(CORNERS[0]), data, "validation", "voc")


def test_the_recall_is_of_objects_that_count_and_needs_no_class():
    objects = make_objects(
        CORNERS, [0, 1, 0, 1], crowd=[False, False, True, False], difficult=[False, False, False, True]
    )
    data = dataset(Source(objects, make_objects([CORNERS[3]], [1])))
    assert recalled(found(CORNERS[1], CORNERS[3]), data, "validation").figures == {"recall": pytest.approx(200 / 3)}
