import numpy as np

from resnet_jax.data.sources.detection.protocol import make_objects
from resnet_jax.evaluation.detection.detections import Detections, best, overlaps
from resnet_jax.evaluation.detection.localization import localization_errors

TRUTH = make_objects([[0, 0, 10, 10], [20, 20, 40, 40]], [3, 3])


def guesses(boxes, labels, scores=None):
    scores = np.linspace(1, 0.5, len(labels)) if scores is None else np.array(scores)
    return Detections(np.array(boxes, float), scores, np.array(labels))


def test_a_guess_needs_the_class_and_half_of_the_overlap_with_any_object_of_it():
    half, less = [0, 0, 10, 5], [0, 0, 10, 4.99]
    cases = [
        (guesses([half], [3]), False),  # Exactly a half is enough.
        (guesses([less], [3]), True),
        (guesses([half], [2]), True),
        (guesses([[20, 20, 40, 40]], [3]), False),
        (guesses([less, [0, 0, 10, 10]], [3, 2]), True),  # The class of one, the box of the other.
        (guesses(np.zeros((0, 4)), []), True),
    ]
    found = localization_errors([TRUTH] * len(cases), [case[0] for case in cases])
    np.testing.assert_array_equal(found, [case[1] for case in cases])


def test_only_the_five_surest_guesses_count():
    boxes, labels = [[0, 0, 10, 10]] * 6, [1, 1, 1, 1, 1, 3]
    first, last = [0.9, 0.9, 0.9, 0.9, 0.9, 1.0], [0.9, 0.9, 0.9, 0.9, 0.9, 0.1]
    found = localization_errors([TRUTH] * 2, [guesses(boxes, labels, first), guesses(boxes, labels, last)])
    np.testing.assert_array_equal(found, [False, True])
    assert not localization_errors([TRUTH], [guesses(boxes, labels, last)], top=6).any()


def test_overlaps_are_those_of_areas_counted_pixel_by_pixel():
    rng = np.random.default_rng(0)
    corner, side = rng.integers(0, 15, (2, 6, 2)), rng.integers(1, 12, (2, 6, 2))
    ours, others = np.concatenate([corner, corner + side], axis=2)
    found = overlaps(ours, others)
    assert found.max() > 0 and found.min() == 0
    for i, j in np.ndindex(6, 6):
        masks = np.zeros((2, 30, 30), bool)
        for mask, (x1, y1, x2, y2) in zip(masks, (ours[i], others[j]), strict=True):
            mask[y1:y2, x1:x2] = True
        assert found[i, j] == masks.all(axis=0).sum() / masks.any(axis=0).sum()
    assert overlaps(np.zeros((1, 4)), np.zeros((1, 4))) == 0


def test_the_best_are_the_surest_and_of_equals_the_first():
    found = best(guesses(np.arange(16).reshape(4, 4), [0, 1, 2, 3], [0.5, 0.9, 0.5, 0.9]), 3)
    assert found.labels.tolist() == [1, 3, 0] and found.boxes[:, 0].tolist() == [4, 12, 0]
