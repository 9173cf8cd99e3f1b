from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from resnet_jax.detection.boxes import iou
from resnet_jax.detection.sampling import match, sample_fixed


def slow_match(overlaps, valid, positive, negative, low_quality):
    """The definition, box by box and ground truth by ground truth."""
    boxes, truths = overlaps.shape
    matched, labels = np.zeros(boxes, int), np.full(boxes, -1)
    there = [g for g in range(truths) if valid[g]]
    for n in range(boxes):
        best = max((overlaps[n, g] for g in there), default=0.0)
        matched[n] = next((g for g in there if overlaps[n, g] == best), 0)
        if best >= positive:
            labels[n] = 1
        elif negative[0] <= best < negative[1]:
            labels[n] = 0
    if low_quality:
        for g in there:
            largest = max(overlaps[:, g])
            for n in range(boxes):
                if largest > 0 and overlaps[n, g] == largest:
                    labels[n] = 1
    return matched, labels


@pytest.mark.parametrize(
    "positive, negative, low_quality", [(0.7, (0.0, 0.3), True), (0.5, (0.1, 0.5), False)], ids=["rpn", "fast-rcnn"]
)
def test_matches_are_those_of_the_definition(positive, negative, low_quality, random_boxes):
    rng = np.random.default_rng(0)
    cases, anchors, truths = 100, 80, 6
    boxes = np.stack([np.round(random_boxes(rng, anchors + truths)) for _ in range(cases)])
    boxes[::3, anchors + 1] = boxes[::3, anchors]  # Twice the same ground truth.
    boxes[1::3, anchors] += 1000  # One that nothing overlaps.
    valid = rng.random((cases, truths)) < 0.7
    valid[::10] = False  # No ground truth at all.
    overlaps = np.asarray(jax.jit(iou)(boxes[:, :anchors], boxes[:, anchors:]))
    run = partial(match, positive=positive, negative=negative, low_quality=low_quality)
    results = jax.jit(jax.vmap(run))(overlaps, valid)
    for i in range(cases):
        expected = slow_match(overlaps[i], valid[i], positive, negative, low_quality)
        for actual, wanted in zip(results, expected, strict=True):
            np.testing.assert_array_equal(actual[i], wanted)
    assert {-1, 0, 1} == set(np.unique(results[1]))


def test_no_slots_for_ground_truth():
    matched, labels = match(jnp.zeros((5, 0)), jnp.zeros(0, bool), 0.7, (0.0, 0.3), low_quality=True)
    assert not matched.any() and not labels.any()


@pytest.mark.parametrize("positives, negatives", [(30, 50), (2, 50), (30, 3), (0, 50), (30, 0), (0, 0), (1, 1)])
def test_counts_are_exact(positives, negatives):
    labels = np.full(100, -1)
    rng = np.random.default_rng(0)
    places = rng.permutation(100)
    labels[places[:positives]] = 1
    labels[places[positives : positives + negatives]] = 0
    index, mask = map(
        np.asarray, jax.jit(partial(sample_fixed, count=16, fraction=0.25))(labels, key=jax.random.key(1))
    )
    drawn = index[mask]
    expected = min(positives, 4)
    assert len(set(drawn)) == len(drawn)
    assert (labels[drawn] == 1).sum() == expected
    assert (labels[drawn] == 0).sum() == min(negatives, 16 - expected)
    assert (labels[drawn] == -1).sum() == 0
    assert np.all(np.diff(mask.astype(int)) <= 0) and not index[~mask].any()


def test_more_slots_than_boxes_take_all():
    labels = np.array([1, 0, -1, 0, 1])
    index, mask = sample_fixed(labels, 20, 0.5, jax.random.key(0))
    assert sorted(np.asarray(index)[np.asarray(mask)]) == [0, 1, 3, 4]
    assert not sample_fixed(labels[:0], 4, 0.5, jax.random.key(0))[1].any()


def test_every_box_is_equally_likely():
    labels = np.array([1] * 12 + [0] * 24 + [-1] * 4)
    draws = jax.jit(jax.vmap(lambda key: sample_fixed(labels, 8, 0.5, key)[0]))(
        jax.random.split(jax.random.key(0), 3000)
    )
    counts = np.bincount(np.asarray(draws).ravel(), minlength=40)
    assert not counts[36:].any()
    # Draws without replacement vary less than the test supposes, which makes it the milder; it is not near its limit.
    for part in (counts[:12], counts[12:36]):
        assert part.sum() == 3000 * 4
        assert stats.chisquare(part).pvalue > 0.001
    assert len(np.unique(np.asarray(draws), axis=0)) > 2900


def test_padding_changes_no_draw():
    labels = np.random.default_rng(0).integers(-1, 2, 50)
    padded = np.concatenate([labels, np.full(70, -1)])
    for actual, expected in zip(
        sample_fixed(padded, 16, 0.25, jax.random.key(3)),
        sample_fixed(labels, 16, 0.25, jax.random.key(3)),
        strict=True,
    ):
        np.testing.assert_array_equal(actual, expected)
