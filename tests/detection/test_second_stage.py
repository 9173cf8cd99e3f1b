import numpy as np
import pytest

from resnet_jax.detection.boxes import decode, iou
from resnet_jax.detection.second_stage import BoxSettings, Predictions, detect


def slow_detect(boxes, valid, probabilities, deltas, hw, settings):
    """Class by class, in NumPy."""
    found = []
    for label in range(deltas.shape[1]):
        moved = np.asarray(decode(deltas[:, label], boxes, settings.weights))
        moved = np.clip(moved, 0, [hw[1], hw[0], hw[1], hw[0]])
        scores = probabilities[:, label + 1]
        there = valid & (scores > settings.min_score) & np.all(moved[:, 2:] - moved[:, :2] >= settings.min_size, axis=1)
        order = [i for i in np.argsort(-scores, kind="stable") if there[i]]
        overlaps, kept = np.asarray(iou(moved, moved)), []
        for i in order:
            if all(overlaps[i, j] <= settings.nms for j in kept):
                kept.append(i)
        found += [(scores[i], label, moved[i]) for i in kept]
    return sorted(found, key=lambda row: -row[0])[: settings.detections]


@pytest.mark.extensive
def test_detections_are_those_of_each_class_by_itself(random_boxes):
    rng = np.random.default_rng(0)
    boxes = np.stack([random_boxes(rng, 40) for _ in range(2)])
    logits = rng.normal(0, 2, (2, 40, 5))
    probabilities = (np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)).astype(np.float32)
    deltas = rng.normal(0, 0.5, (2, 40, 4, 4)).astype(np.float32)
    predictions = Predictions(boxes, rng.random((2, 40)) < 0.8, probabilities, deltas)
    hw = np.float32([[90, 80], [100, 110]])
    settings = BoxSettings(detections=12, nms=0.3)
    found = detect(predictions, hw, settings)
    assert not found.overflow.any()
    for i in range(2):
        expected = slow_detect(*(np.asarray(x)[i] for x in predictions), hw[i], settings)
        assert len(expected) == found.valid[i].sum() > 5
        for slot, (score, label, box) in enumerate(expected):
            np.testing.assert_allclose(found.scores[i, slot], score)
            assert found.labels[i, slot] == label
            np.testing.assert_allclose(found.boxes[i, slot], box, atol=1e-4)
    # With room for ten candidates the others are counted.
    few = detect(predictions, hw, settings._replace(candidates=10))
    above = (probabilities[..., 1:] > settings.min_score) & np.asarray(predictions.valid)[..., None]
    np.testing.assert_array_equal(few.overflow, above.sum(axis=(1, 2)) - 10)
