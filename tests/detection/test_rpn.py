import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.detection.anchors import Anchors
from resnet_jax.detection.boxes import clip, decode, encode, iou
from resnet_jax.detection.rpn import RPNSettings, propose, rpn_losses, smooth_l1

HW = np.float32([[40, 60]])
ANCHORS = Anchors(((12.0, 24.0),), (0.5, 1.0))


@pytest.fixture(scope="module")
def maps():
    """Scores and deltas of two maps, and their anchors."""
    rng = np.random.default_rng(0)
    anchors = [ANCHORS.on((48, 64), [(48 // s, 64 // s)], (s,))[0] for s in (8, 16)]
    scores = [rng.normal(size=(1, len(a))).astype(np.float32) for a in anchors]
    deltas = [rng.normal(0, 0.3, (1, len(a), 4)).astype(np.float32) for a in anchors]
    return scores, deltas, anchors


@pytest.mark.extensive
def test_proposals_are_those_of_each_map_by_itself(maps):
    settings = RPNSettings(test_pre_nms=50, test_post_nms=20, min_size=4.0)
    found = jax.jit(lambda *x: propose(*x, jnp.asarray(HW), settings))(*maps)
    expected = []
    for scores, deltas, anchors in zip(*maps, strict=True):
        boxes = np.asarray(clip(decode(deltas[0], anchors), HW[0]))
        overlaps, kept = np.asarray(iou(boxes, boxes)), []
        for i in np.argsort(-scores[0], kind="stable")[:50]:
            large = np.all(boxes[i, 2:] - boxes[i, :2] >= 4)
            if large and all(overlaps[i, j] <= 0.7 for j in kept):
                kept.append(i)
        expected += [(scores[0, i], boxes[i]) for i in kept]
    expected = sorted(expected, key=lambda row: -row[0])[:20]
    assert found.valid.all()
    np.testing.assert_allclose(found.scores[0], [score for score, _ in expected], rtol=1e-6)
    np.testing.assert_allclose(found.boxes[0], [box for _, box in expected], atol=1e-4)


@pytest.mark.extensive
def test_losses_are_the_formula_where_every_anchor_counts(maps):
    scores, deltas, anchors = (np.concatenate(x, axis=-1 if i == 0 else -2) for i, x in enumerate(maps))
    truth = np.float32([[[4, 4, 26, 30], [30, 8, 50, 20]]])
    settings = RPNSettings(samples=4 * len(anchors), straddle=0.0, beta=1 / 9)
    valid = np.array([[True, True]])
    objectness, box = rpn_losses(scores, deltas, anchors, HW, truth, valid, settings, jax.random.key(0))
    within = np.all((anchors >= 0) & (anchors <= [60, 40, 60, 40]), axis=1)
    assert 0 < within.sum() < len(anchors)
    overlaps = np.asarray(iou(anchors, truth[0])) * within[:, None]
    positive = (overlaps.max(axis=1) >= 0.7) | ((overlaps == overlaps.max(axis=0)) & (overlaps > 0)).any(axis=1)
    negative = within & ~positive & (overlaps.max(axis=1) < 0.3)
    assert positive.any()
    entropy = np.where(positive, np.log1p(np.exp(-scores[0])), np.log1p(np.exp(scores[0])))
    count = positive.sum() + negative.sum()
    np.testing.assert_allclose(objectness, entropy[positive | negative].sum() / count, rtol=1e-5)
    target = np.asarray(encode(truth[0][overlaps.argmax(axis=1)], anchors))
    d = np.abs(deltas[0] - target)
    distance = np.where(d < 1 / 9, 4.5 * d**2, d - 1 / 18).sum(axis=1)
    np.testing.assert_allclose(box, distance[positive].sum() / count, rtol=1e-4)


@pytest.mark.extensive
def test_no_ground_truth_gives_finite_losses_and_gradients(maps):
    scores, deltas, anchors = (np.concatenate(x, axis=-1 if i == 0 else -2) for i, x in enumerate(maps))
    truth, valid = np.full((1, 2, 4), np.inf, np.float32), np.zeros((1, 2), bool)

    def total(scores, deltas):
        objectness, box = rpn_losses(scores, deltas, anchors, HW, truth, valid, RPNSettings(), jax.random.key(0))
        return objectness + box

    value, gradients = jax.value_and_grad(total, argnums=(0, 1))(scores, deltas)
    assert value > 0
    assert np.all(np.isfinite(gradients[0])) and np.any(gradients[0]) and not np.any(gradients[1])


def test_no_box_is_proposed_beyond_the_image_on_its_canvas_even_of_size_0():
    # Of the upper left quarter of a canvas: anchors at the other places have no area once they are cut to it.
    anchors = ANCHORS.on((48, 64), [(6, 8)], (8,))[0]
    scores, deltas, hw = jnp.arange(float(len(anchors)))[None], jnp.zeros((1, len(anchors), 4)), jnp.float32([[24, 32]])
    settings = RPNSettings(nms=1.0, min_size=0.0)
    found = jax.jit(lambda *given: propose([given[0]], [given[1]], [given[2]], hw, settings))(scores, deltas, anchors)
    beyond = (np.asarray(anchors)[:, :2] >= [32, 24]).any(axis=1)
    assert beyond.any() and int(found.valid.sum()) == (~beyond).sum()
    sides = np.asarray(found.boxes[0, :, 2:] - found.boxes[0, :, :2])[found.valid[0]]
    assert (sides > 0).all()


def test_smooth_l1():
    np.testing.assert_allclose(smooth_l1(jnp.array([-2.0, 0.5, 0.05]), 1.0), [1.5, 0.125, 0.00125], rtol=1e-6)
    np.testing.assert_allclose(smooth_l1(jnp.array([-2.0, 0.5]), 0.0), [2, 0.5])
