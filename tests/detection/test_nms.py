from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.detection import nms as nms_module
from resnet_jax.detection.nms import box_vote, nms

CASES, BOXES = 200, 40


def numpy_iou(boxes):
    boxes = np.asarray(boxes, np.float32)
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    inter = np.prod(np.maximum(high - low, 0), axis=2)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return inter / (areas[:, None] + areas[None] - inter)


def greedy(boxes, scores, threshold, max_out, valid=None, groups=None):
    """The sequential algorithm, in float32; a stable sort by falling score."""
    suppresses = numpy_iou(boxes) > threshold
    if groups is not None:
        suppresses &= groups[:, None] == groups
    kept = []
    for i in np.argsort(-np.asarray(scores), kind="stable"):
        if (valid is None or valid[i]) and not suppresses[i, kept].any():
            kept.append(int(i))
    return kept[:max_out]


def kept_by(result):
    indices, valid = map(np.asarray, result)
    assert not indices[~valid].any()
    assert np.all(np.diff(valid.astype(int)) <= 0)
    return indices[valid].tolist()


@pytest.mark.parametrize("threshold, block", [(0.3, 512), (0.5, 512), (0.7, 512), (0.3, 16)])
def test_it_keeps_what_the_sequential_algorithm_keeps(threshold, block, random_boxes, monkeypatch):
    monkeypatch.setattr(nms_module, "BLOCK", block)
    rng = np.random.default_rng(0)
    boxes = np.stack([random_boxes(rng, BOXES) for _ in range(CASES)])
    # Half of the cases have few different scores, so that there are ties.
    scores = rng.normal(size=(CASES, BOXES)).astype(np.float32)
    scores[::2] = np.round(scores[::2], 1)
    valid = rng.random((CASES, BOXES)) < 0.9
    groups = rng.integers(3, size=(CASES, BOXES))
    groups[: CASES // 2] = 0
    run = jax.jit(jax.vmap(partial(nms_module.nms, threshold=threshold, max_out=BOXES)))
    results = run(boxes, scores, valid=valid, groups=groups)
    suppressed = 0
    for i in range(CASES):
        expected = greedy(boxes[i], scores[i], threshold, BOXES, valid[i], groups[i])
        assert kept_by((results[0][i], results[1][i])) == expected
        suppressed += valid[i].sum() - len(expected)
    assert suppressed > CASES // 2


@pytest.mark.parametrize("block", [512, 7], ids=["one-block", "blocks"])
def test_a_chain_in_which_every_box_depends_on_the_one_before(block, monkeypatch):
    monkeypatch.setattr(nms_module, "BLOCK", block)
    # Neighbours overlap by 2/3, the next but one by 1/3: every second box is kept, each because of the one before.
    x = np.arange(64, dtype=np.float32) * 2
    boxes = np.stack([x, 0 * x, x + 10, 0 * x + 10], axis=1)
    result = jax.jit(partial(nms_module.nms, threshold=0.5, max_out=64))(boxes, -x)
    assert kept_by(result) == list(range(0, 64, 2))


def test_equal_boxes_of_equal_scores_keep_the_first():
    boxes = jnp.tile(jnp.array([[0.0, 0, 5, 5]]), (6, 1))
    assert kept_by(nms(boxes, jnp.zeros(6), 0.5, 3)) == [0]
    # An IoU of exactly the threshold does not suppress.
    assert kept_by(nms(boxes, jnp.zeros(6), 1.0, 4)) == [0, 1, 2, 3]


@pytest.mark.extensive
def test_at_most_max_out_boxes_and_none_of_no_boxes():
    boxes = jnp.arange(5.0)[:, None] * 10 + jnp.array([0.0, 0, 5, 5])
    scores = jnp.array([1.0, 5, jnp.nan, -jnp.inf, 4])
    assert kept_by(nms(boxes, scores, 0.5, 2)) == [1, 4]
    assert kept_by(nms(boxes, scores, 0.5, 9)) == [1, 4, 0, 3]
    assert kept_by(nms(boxes, scores, 0.5, 9, valid=jnp.zeros(5, bool))) == []
    assert kept_by(nms(jnp.zeros((0, 4)), jnp.zeros(0), 0.5, 2)) == []


def test_it_stops_once_enough_are_found(monkeypatch):
    # Later blocks are not looked at: their boxes would be kept too, but the result is full.
    monkeypatch.setattr(nms_module, "BLOCK", 4)
    looked_at = []

    def count(suppresses, candidates):
        jax.debug.callback(lambda number: looked_at.append(int(number)), candidates.sum())
        return candidates  # None of the boxes suppresses another.

    monkeypatch.setattr(nms_module, "_fixed_point", count)
    boxes = jnp.arange(10.0)[:, None] * 10 + jnp.array([0.0, 0, 5, 5])
    for wanted, blocks in ((4, [4]), (5, [4, 4]), (20, [4, 4, 2])):
        run = jax.jit(partial(nms_module.nms, threshold=0.5, max_out=wanted))
        assert kept_by(run(boxes, -jnp.arange(10.0))) == list(range(min(wanted, 10)))
        jax.effects_barrier()
        assert looked_at == blocks
        looked_at.clear()


@pytest.mark.extensive
def test_box_votes_are_a_weighted_mean(random_boxes):
    rng = np.random.default_rng(3)
    boxes, scores, groups = random_boxes(rng, 40), rng.random(40).astype(np.float32), rng.integers(2, size=40)
    valid, overlaps = rng.random(40) < 0.8, numpy_iou(boxes)
    index, found = nms(boxes, scores, 0.3, 10, valid, groups)
    kept = np.asarray(index)[np.asarray(found)]
    result = box_vote(boxes[kept], boxes, scores, 0.5, valid, groups[kept], groups)
    moved = 0
    for row, k in zip(result, kept, strict=True):
        voters = np.flatnonzero(valid & (groups == groups[k]) & (overlaps[k] >= 0.5))
        assert k in voters
        moved += len(voters) > 1
        np.testing.assert_allclose(row, np.average(boxes[voters], axis=0, weights=scores[voters]), rtol=1e-5, atol=1e-4)
    assert moved
    np.testing.assert_array_equal(box_vote(boxes[:2], boxes, jnp.zeros(40)), boxes[:2])


def test_on_a_mesh(eight_devices, random_boxes):
    from resnet_jax.parallel import sharded_batch

    rng = np.random.default_rng(4)
    boxes = np.stack([random_boxes(rng, 30) for _ in range(8)])
    scores = rng.normal(size=(8, 30)).astype(np.float32)
    run = jax.jit(jax.vmap(partial(nms, threshold=0.5, max_out=10)))
    placed = jax.device_put((boxes, scores), sharded_batch(eight_devices))
    for a, b in zip(run(*placed), run(boxes, scores), strict=True):
        np.testing.assert_array_equal(a, b)
