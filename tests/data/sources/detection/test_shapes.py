import pickle

import numpy as np
import pytest

from resnet_jax.data.sources.detection import open_detection
from resnet_jax.data.sources.detection.shapes import ShapesSource
from resnet_jax.errors import UserError
from resnet_jax.evaluation.detection.detections import overlaps


def test_photographs_are_a_function_of_the_split_and_the_place():
    found = open_detection("shapes", None, ["train"])
    assert found.class_names == ["circle", "square", "triangle"]
    train, validation = found.open_split("train"), found.open_split("validation")
    assert (len(train), len(validation)) == (2_000, 200)
    again = pickle.loads(pickle.dumps(ShapesSource("train")))
    for i in (3, 1999, 0):
        assert train[i]["image"].shape == (128, 128, 3) and train[i]["image"].dtype == np.uint8
        np.testing.assert_array_equal(train[i]["image"], again[i]["image"])
        np.testing.assert_array_equal(train.objects(i).boxes, again.objects(i).boxes)
    assert not np.array_equal(train[0]["image"], train[1]["image"])
    assert not np.array_equal(train[0]["image"], validation[0]["image"])


def test_each_photograph_has_one_to_five_objects_that_hardly_overlap_and_all_classes_occur():
    source = ShapesSource("train")
    objects = [source.objects(i) for i in range(100)]
    assert {len(found.labels) for found in objects} == {1, 2, 3, 4, 5}
    assert (np.bincount(np.concatenate([found.labels for found in objects]), minlength=3) > 60).all()
    for found in objects:
        assert found.boxes.min() >= 0 and found.boxes.max() <= 128
        assert np.triu(overlaps(found.boxes, found.boxes), 1).max() < 0.15


def test_boxes_are_tight_around_what_differs_from_the_ground():
    source = ShapesSource("validation")
    alone = [i for i in range(60) if len(source.objects(i).labels) == 1]
    areas = {0: [], 1: [], 2: []}
    for i in alone:
        image, objects = source[i]["image"].astype(int), source.objects(i)
        ground = np.median(np.concatenate([image[:2].reshape(-1, 3), image[-2:].reshape(-1, 3)]), axis=0)
        rows, columns = np.nonzero(abs(image - ground).max(axis=2) > 24)
        # Pixels whose centres are inside: within half a pixel of the corners, and one at the tips.
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(found, objects.boxes[0], atol=1.6)
        areas[int(objects.labels[0])].append(len(rows) / objects.areas[0])
    for label, expected in ((0, np.pi / 4), (1, 1.0), (2, 0.5)):
        np.testing.assert_allclose(areas[label], expected, atol=0.09)
        assert areas[label]


def test_another_split_and_given_classes_are_refused():
    with pytest.raises(UserError, match="no split 'test'; use train or validation"):
        open_detection("shapes", None, ["train"]).open_split("test")
    with pytest.raises(UserError, match="the classes of shapes are circle"):
        open_detection("shapes", None, ["train"], ("star",))


def test_of_one_class_a_photograph_shows_the_shapes_of_its_first_one():
    every, source = (
        open_detection(name, None, ["train"]).open_split("train") for name in ("shapes", "shapes_of_one_class")
    )
    counts = set()
    for i in range(40):
        whole, found = every.objects(i), source.objects(i)
        chosen = whole.labels == whole.labels[0]
        np.testing.assert_array_equal(found.boxes, whole.boxes[chosen])
        assert (found.labels == whole.labels[0]).all()
        counts.add(len(found.labels))
        if len(whole.labels) == 1:
            np.testing.assert_array_equal(source[i]["image"], every[i]["image"])
    assert {1, 2} <= counts
