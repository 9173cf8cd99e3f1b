import numpy as np
import pytest

from resnet_jax.data.sources.detection.protocol import make_objects
from resnet_jax.evaluation.detection.detections import Detections
from resnet_jax.evaluation.detection.voc import (
    average_precision,
    imagenet_scores,
    mean_average_precision,
    precision_recall,
    voc_scores,
)

ONE_BASED = np.array([1, 1, 0, 0])


def nothing():
    return Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))


def test_the_published_example_of_24_detections():
    hits = np.isin(np.arange(1, 25), (1, 3, 10, 12, 13, 14, 22))
    recall, precision = precision_recall(hits, ~hits, 15)
    assert average_precision(recall, precision, eleven_points=True) == pytest.approx(0.26840, abs=5e-6)
    assert average_precision(recall, precision, eleven_points=False) == pytest.approx(0.24661, abs=5e-6)


def test_the_same_example_through_boxes():
    # One object in each of 15 photographs; hits lie on objects 0 to 6, misses far from all.
    truth = [make_objects([[10, 10, 30, 40]], [0]) for _ in range(15)]
    boxes, ranks = [[] for _ in truth], [[] for _ in truth]
    hits = [1, 3, 10, 12, 13, 14, 22]
    for rank in range(1, 25):
        image = hits.index(rank) if rank in hits else rank % 15
        boxes[image].append([10, 10, 30, 40] if rank in hits else [60, 60, 80, 80])
        ranks[image].append(rank)
    detections = [
        Detections(np.reshape(box, (-1, 4)), 1 - np.array(rank) / 30, np.zeros(len(rank), int))
        for box, rank in zip(boxes, ranks, strict=True)
    ]
    for eleven, expected in ((True, 0.26840), (False, 0.24661)):
        (score,) = voc_scores(truth, detections, 1, eleven)
        assert score.average_precision == pytest.approx(expected, abs=5e-6)
        assert score.num_objects == 15 and len(score.recall) == 24


def test_a_recall_of_tenths_counts_as_reached():
    # 3 of 10 found, all of them right: recalls 0, 0.1, 0.2 and 0.3 are reached.
    recall, precision = precision_recall(np.ones(3, bool), np.zeros(3, bool), 10)
    assert average_precision(recall, precision, eleven_points=True) == pytest.approx(4 / 11)
    assert average_precision(recall, precision, eleven_points=False) == pytest.approx(0.3)


def reference(truth, detections, label, eleven, threshold):
    """One class in the form of the development kit: one-based corners, sides of x2 - x1 + 1, one detection a time."""
    objects, count = {}, 0
    for image, found in enumerate(truth):
        objects[image] = []
        for box, own, difficult in zip(found.boxes, found.labels, found.difficult, strict=True):
            if own == label:
                objects[image].append({"box": box + ONE_BASED, "difficult": difficult, "taken": False})
                count += not difficult
    rows = [
        (score, image, box + ONE_BASED)
        for image, found in enumerate(detections)
        for box, score, own in zip(found.boxes, found.scores, found.labels, strict=True)
        if own == label
    ]
    true = false = 0
    curve = []
    for _, image, box in sorted(rows, key=lambda row: -row[0]):
        best, chosen = -1.0, None
        for candidate in objects[image]:
            other = candidate["box"]
            width = min(box[2], other[2]) - max(box[0], other[0]) + 1
            height = min(box[3], other[3]) - max(box[1], other[1]) + 1
            if width > 0 and height > 0:
                both = sum((b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, other))
                overlap = width * height / (both - width * height)
                if overlap > best:
                    best, chosen = overlap, candidate
        if best > threshold and chosen["difficult"]:
            continue
        if best > threshold and not chosen["taken"]:
            chosen["taken"] = True
            true += 1
        else:
            false += 1
        curve.append((true / count, true / (true + false)))
    if eleven:
        return sum(max([p for r, p in curve if round(r * count) * 10 >= k * count], default=0) for k in range(11)) / 11
    area, reached = 0.0, 0.0
    for place, (recall, _) in enumerate(curve):
        area += (recall - reached) * max(p for _, p in curve[place:])
        reached = recall
    return area


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_a_slow_loop_in_the_form_of_the_development_kit(seed):
    rng = np.random.default_rng(seed)

    def boxes(count):
        corner, side = rng.integers(0, 40, (count, 2)), rng.integers(8, 30, (count, 2))
        return np.concatenate([corner, corner + side], axis=1).astype(float)

    truth, detections = [], []
    for _ in range(12):
        count = int(rng.integers(0, 6))
        truth.append(make_objects(boxes(count), rng.integers(0, 2, count), difficult=rng.random(count) < 0.3))
        # Each object found twice or so, shifted by some pixels, now and then as the other class; and some noise.
        shifted = np.repeat(truth[-1].boxes, 2, axis=0) + rng.integers(-4, 5, (2 * count, 4))
        labels = np.repeat(truth[-1].labels, 2)
        labels = np.where(rng.random(2 * count) < 0.2, 1 - labels, labels)
        found = np.concatenate([shifted, boxes(3)])
        detections.append(Detections(found, rng.random(len(found)), np.concatenate([labels, rng.integers(0, 2, 3)])))
    for eleven in (True, False):
        for threshold in (0.5, 0.7):
            scores = voc_scores(truth, detections, 2, eleven, threshold)
            expected = [reference(truth, detections, label, eleven, threshold) for label in range(2)]
            assert 0 < min(expected) < max(expected) < 0.95
            np.testing.assert_allclose([score.average_precision for score in scores], expected, atol=1e-12)
            assert mean_average_precision(scores) == pytest.approx(np.mean(expected))


def test_exactly_half_an_overlap_is_a_miss_and_difficult_objects_are_neither():
    truth = [make_objects([[0, 0, 10, 10], [50, 50, 60, 60]], [0, 0], difficult=[False, True])]
    half = Detections(
        np.array([[0, 0, 10, 5.0], [50, 50, 60, 60], [50, 50, 60, 60]]), np.array([0.9, 0.8, 0.7]), np.zeros(3)
    )
    (score,) = voc_scores(truth, [half], 1, False)
    assert score.average_precision == 0 and score.num_objects == 1
    np.testing.assert_array_equal(score.precision, [0, 0, 0])
    more = half._replace(boxes=half.boxes + np.array([[0, 0, 0, 0.01], [0, 0, 0, 0], [0, 0, 0, 0]]))
    (score,) = voc_scores(truth, [more], 1, False)
    assert score.average_precision == 1
    np.testing.assert_array_equal(score.precision, [1, 1, 1])  # The difficult one was found twice, for nothing.


def test_a_class_without_objects_is_in_no_mean_and_one_without_detections_is_0():
    truth = [make_objects([[0, 0, 10, 10], [5, 5, 9, 9]], [0, 2], difficult=[False, True])]
    scores = voc_scores(truth, [nothing()], 3, True)
    assert [score.num_objects for score in scores] == [1, 0, 0]
    assert scores[0].average_precision == 0 and np.isnan(scores[1].average_precision)
    assert mean_average_precision(scores) == 0
    assert np.isnan(mean_average_precision(scores[1:]))


def test_lists_of_different_photographs_are_refused():
    with pytest.raises(ValueError, match="1 photographs with objects, but 2 with detections"):
        voc_scores([make_objects([], [])], [nothing(), nothing()], 1, True)


def test_crowds_are_not_to_be_found_and_what_lies_in_them_is_neither():
    truth = [make_objects([[0, 0, 10, 10], [20, 0, 80, 60]], [0, 0], crowd=[False, True])]
    boxes = [[21, 1, 30, 10], [0, 0, 10, 10], [15, 0, 25, 10], [14, 0, 24.1, 10], [0, 0, 10, 10], [21, 1, 30, 10]]
    found = Detections(np.array(boxes), np.linspace(0.9, 0.1, 6), np.array([0, 0, 0, 0, 0, 1]))
    for score in (voc_scores(truth, [found], 2, False)[0], imagenet_scores(truth, [found], 2)[0]):
        # In the crowd; right; a half of it in the crowd and less, wrong; a second time, wrong.
        np.testing.assert_array_equal(score.precision, [0, 1, 0.5, 1 / 3, 1 / 4])
        assert score.num_objects == 1 and score.average_precision == 1
    # Of another class the crowd is none.
    (_, other) = voc_scores(truth, [found], 2, False)
    assert other.num_objects == 0 and np.isnan(other.average_precision) and len(other.recall) == 1


def imagenet_reference(truth, detections, label):
    """One class in the form of ImageNet's development kit: of all objects that are free and near enough the nearest."""
    taken = [np.zeros(len(found.labels), bool) for found in truth]
    count = sum(int((found.labels == label).sum()) for found in truth)
    rows = [
        (score, image, box)
        for image, found in enumerate(detections)
        for box, score, own in zip(found.boxes, found.scores, found.labels, strict=True)
        if own == label
    ]
    hits = []
    for _, image, box in sorted(rows, key=lambda row: -row[0]):
        most, chosen = 0.0, None
        for number, (other, own) in enumerate(zip(truth[image].boxes, truth[image].labels, strict=True)):
            if own != label or taken[image][number]:
                continue
            width, height = other[2] - other[0], other[3] - other[1]
            shared = max(0, min(box[2], other[2]) - max(box[0], other[0]))
            shared *= max(0, min(box[3], other[3]) - max(box[1], other[1]))
            overlap = shared / ((box[2] - box[0]) * (box[3] - box[1]) + width * height - shared)
            if overlap >= min(0.5, width * height / ((width + 10) * (height + 10))) and overlap > most:
                most, chosen = overlap, number
        hits.append(chosen is not None)
        if chosen is not None:
            taken[image][chosen] = True
    recall, precision = precision_recall(np.array(hits), ~np.array(hits), count)
    return sum(
        (r - before) * precision[i:].max() for i, (r, before) in enumerate(zip(recall, [0, *recall], strict=False))
    )


@pytest.mark.parametrize("seed", range(4))
def test_imagenet_s_rules_are_those_of_a_slow_loop(seed):
    rng = np.random.default_rng(seed)
    truth, detections = [], []
    for _ in range(12):
        count = int(rng.integers(0, 6))
        # Many are small and near each other, so that thresholds and free objects matter.
        corner, side = rng.integers(0, 16, (count, 2)), rng.integers(4, 20, (count, 2))
        boxes = np.concatenate([corner, corner + side], axis=1).astype(float)
        truth.append(make_objects(boxes, rng.integers(0, 2, count)))
        shifted = np.repeat(boxes, 2, axis=0) + rng.integers(-3, 4, (2 * count, 4))
        shifted[:, 2:] = np.maximum(shifted[:, 2:], shifted[:, :2] + 1)
        detections.append(Detections(shifted, rng.random(2 * count), np.repeat(truth[-1].labels, 2)))
    found = [score.average_precision for score in imagenet_scores(truth, detections, 2)]
    np.testing.assert_allclose(found, [imagenet_reference(truth, detections, label) for label in range(2)], atol=1e-12)
    assert found != [score.average_precision for score in voc_scores(truth, detections, 2, False)]


def test_imagenet_s_overlap_is_less_for_small_objects_and_the_next_free_object_is_found():
    # 10 x 10 pixels: from an overlap of 100 / 400 on.
    truth = [make_objects([[0, 0, 10, 10]], [0])]
    for width, expected in ((2.5, 1), (2.4, 0)):
        found = [Detections(np.array([[0, 0, width, 10]]), np.ones(1), np.zeros(1, int))]
        assert imagenet_scores(truth, found, 1)[0].average_precision == expected
        assert voc_scores(truth, found, 1, False)[0].average_precision == 0
    # Both detections overlap the first object most, which the surer one finds; the other finds the second object.
    truth = [make_objects([[0, 0, 100, 100], [0, 0, 100, 70]], [0, 0])]
    found = [Detections(np.array([[0, 0, 100, 100], [0, 0, 100, 95.0]]), np.array([0.9, 0.8]), np.zeros(2, int))]
    assert imagenet_scores(truth, found, 1)[0].average_precision == 1
    assert voc_scores(truth, found, 1, False)[0].average_precision == 0.5
