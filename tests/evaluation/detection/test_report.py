import csv

import numpy as np
import PIL.Image

from resnet_jax.data.sources.detection.protocol import make_objects
from resnet_jax.evaluation.detection.detections import Detections
from resnet_jax.evaluation.detection.report import draw_boxes, plot_precision_recall, write_class_table
from resnet_jax.evaluation.detection.voc import voc_scores

NAMES = ["cat, tame", "dog", "eel"]


def scores():
    truth = [make_objects([[0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 10, 30]], [0, 0, 1])]
    found = Detections(np.array([[0, 0, 10, 10], [60, 60, 70, 70.0]]), np.array([0.9, 0.8]), np.array([0, 1]))
    return voc_scores(truth, [found], 3, False)


def test_the_table_has_a_line_for_each_class_and_their_mean(tmp_path):
    path = tmp_path / "new" / "classes.csv"
    write_class_table(path, NAMES, scores(), {"coco_ap": [0.25, 0.5, float("nan")]})
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["class", "objects", "detections", "average_precision", "coco_ap"],
        ["cat, tame", "2", "1", "0.500000", "0.250000"],
        ["dog", "1", "1", "0.000000", "0.500000"],
        ["eel", "0", "0", "", ""],
        ["mean", "3", "2", "0.250000", "0.375000"],
    ]


def test_curves_are_drawn(tmp_path):
    plot_precision_recall(tmp_path / "empty.png", NAMES[:1], [s._replace(num_objects=0) for s in scores()[:1]], "none")
    plot_precision_recall(tmp_path / "curves.png", NAMES, scores(), "shapes")
    empty, drawn = (np.asarray(PIL.Image.open(tmp_path / f"{name}.png").convert("RGB")) for name in ("empty", "curves"))
    coloured = (drawn.max(axis=2).astype(int) - drawn.min(axis=2)) > 60
    assert empty.shape == drawn.shape and coloured.sum() > 500


def test_boxes_are_drawn_inside_the_photograph_at_their_corners():
    image = np.full((60, 80, 3), 128, np.uint8)
    boxes = np.array([[0, 0, 80, 60], [10.0, 30, 30, 50]])
    drawn = draw_boxes(image, boxes, np.array([0, 1]), NAMES, np.array([0.9, 0.3]))
    assert drawn.shape == image.shape and drawn.dtype == np.uint8 and (image == 128).all()
    first, second = drawn[59, 79], drawn[49, 29]
    assert not (first == 128).all() and not (second == 128).all() and not (first == second).all()
    for y, x in ((59, 40), (30, 79)):  # The last row and column belong to a box around everything.
        np.testing.assert_array_equal(drawn[y, x], first)
    np.testing.assert_array_equal(drawn[40, 29], second)
    assert (drawn[40, 30] == 128).all() and (drawn[40, 20] == 128).all()


def test_no_boxes_and_boxes_of_no_width_are_drawn_without_fault():
    image = np.full((40, 50, 3), 7, np.uint8)
    np.testing.assert_array_equal(draw_boxes(image, np.zeros((0, 4)), np.zeros(0, int), NAMES), image)
    assert (draw_boxes(image, np.array([[20.2, 20.1, 20.3, 20.9]]), np.zeros(1, int), NAMES) != 7).any()
