import contextlib
import io
import json
import sys

import numpy as np
import pytest

from resnet_jax.data.sources.detection.protocol import make_objects
from resnet_jax.errors import UserError
from resnet_jax.evaluation.detection.coco import FIGURES, coco_results, coco_scores
from resnet_jax.evaluation.detection.detections import Detections

pytest.importorskip("pycocotools", reason="needs pycocotools: pip install pycocotools")

CATEGORY_IDS = [1, 7, 90, 3]  # Not sorted, and with gaps.
IMAGE_IDS = [139, 42, 7, 1000, 285, 3]


def examples(seed=0):
    rng = np.random.default_rng(seed)
    truth, detections = [], []
    for number in range(len(IMAGE_IDS)):
        count = 0 if number == 2 else int(rng.integers(3, 9))
        corner, side = rng.uniform(0, 300, (count, 2)), rng.uniform(6, 250, (count, 2))
        boxes = np.concatenate([corner, corner + side], axis=1)
        labels = rng.integers(0, 3, count)  # Nothing is of the last class.
        truth.append(make_objects(boxes, labels, crowd=rng.random(count) < 0.2, areas=side.prod(1) * 0.7))
        noise = rng.uniform(0, 200, (20, 4)) + np.array([0, 0, 200, 200])
        found = np.concatenate([np.repeat(boxes, 4, axis=0), noise])
        found += rng.normal(0, 6, found.shape)
        classes = np.concatenate([np.repeat(labels, 4), rng.integers(0, 4, 20)])
        detections.append(Detections(found, rng.random(len(found)), classes))
    # More than a hundred: the least sure do not count.
    many = detections[4]
    detections[4] = Detections(*(np.concatenate([part] * 4) for part in many))
    detections[4] = detections[4]._replace(scores=rng.random(len(detections[4].scores)))
    return truth, detections


def direct(truth, detections, tmp_path):
    """pycocotools as its own documentation uses it: a file of annotations, and a file of results."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations, results = [], []
    for image, objects, found in zip(IMAGE_IDS, truth, detections, strict=True):
        for box, label, crowd, area in zip(objects.boxes, objects.labels, objects.crowd, objects.areas, strict=True):
            x, y, right, lower = map(float, box)
            row = {"image_id": image, "category_id": CATEGORY_IDS[label], "bbox": [x, y, right - x, lower - y]}
            annotations.append(row | {"id": len(annotations) + 1, "iscrowd": int(crowd), "area": float(area)})
        for place in sorted(range(len(found.scores)), key=lambda i: -found.scores[i])[:100]:
            x, y, right, lower = map(float, found.boxes[place])
            category = CATEGORY_IDS[found.labels[place]]
            row = {"image_id": image, "category_id": category, "bbox": [x, y, right - x, lower - y]}
            results.append(row | {"score": float(found.scores[place])})
    images = [{"id": image, "width": 640, "height": 640} for image in IMAGE_IDS]
    categories = [{"id": one, "name": str(one)} for one in CATEGORY_IDS]
    content = {"images": images, "categories": categories, "annotations": annotations, "info": {}}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "truth.json"))
        evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / "results.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def test_the_figures_are_those_of_pycocotools(tmp_path):
    truth, detections = examples()
    scores = coco_scores(truth, detections, CATEGORY_IDS, IMAGE_IDS)
    evaluation = direct(truth, detections, tmp_path)
    assert tuple(scores.figures) == FIGURES
    assert 0.1 < scores.figures["AP"] < 0.9 and scores.figures["APs"] != scores.figures["APl"]
    np.testing.assert_allclose(list(scores.figures.values()), evaluation.stats, rtol=0, atol=1e-6)
    by_class = {}
    for place, category in enumerate(sorted(CATEGORY_IDS)):
        precision = evaluation.eval["precision"][:, :, place, 0, 2]
        by_class[category] = np.mean(precision) if (precision > -1).any() else np.nan
    np.testing.assert_allclose(scores.class_ap, [by_class[category] for category in CATEGORY_IDS], atol=1e-6)
    assert np.isnan(scores.class_ap[3]) and np.nanmean(scores.class_ap) == pytest.approx(scores.figures["AP"])
    assert np.nanmean(scores.class_ap50) == pytest.approx(scores.figures["AP50"])


def test_ids_change_nothing_and_perfect_detections_are_1():
    truth, _ = examples(1)
    kept = [~objects.crowd for objects in truth]
    perfect = [
        Detections(objects.boxes[own], np.full(own.sum(), 0.9), objects.labels[own])
        for objects, own in zip(truth, kept, strict=True)
    ]
    scores = coco_scores(truth, perfect, CATEGORY_IDS)
    assert scores.figures["AP"] == pytest.approx(1)
    assert scores.figures == coco_scores(truth, perfect, [5, 6, 7, 8], IMAGE_IDS[::-1]).figures


def test_no_detections_at_all_are_0_and_nothing_is_printed(capsys):
    truth, _ = examples(1)
    nothing = [Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)) for _ in truth]
    scores = coco_scores(truth, nothing, CATEGORY_IDS, IMAGE_IDS)
    assert scores.figures["AP"] == scores.figures["AR100"] == 0
    assert capsys.readouterr().out == ""


def test_results_are_in_the_format_of_the_evaluation_server():
    found = Detections(np.array([[1, 2, 11, 22.5], [0, 0, 4, 4]]), np.array([0.25, 0.5]), np.array([1, 2]))
    assert coco_results([found], CATEGORY_IDS, [139]) == [
        {"image_id": 139, "category_id": 90, "bbox": [0.0, 0.0, 4.0, 4.0], "score": 0.5},
        {"image_id": 139, "category_id": 7, "bbox": [1.0, 2.0, 10.0, 20.5], "score": 0.25},
    ]


def test_without_pycocotools_the_error_says_what_to_install(monkeypatch):
    for name in ("pycocotools.coco", "pycocotools.cocoeval"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="pip install pycocotools"):
        coco_scores(*examples(), CATEGORY_IDS, IMAGE_IDS)


def test_two_photographs_of_one_id_are_refused():
    with pytest.raises(ValueError, match="1 of the image_ids, such as 42, are of several photographs"):
        coco_scores(*examples(), CATEGORY_IDS, [139, 42, 7, 1000, 42, 3])
