import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.detection.boxes import area, at_least, clip, decode, encode, iou


def slow_iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    inter = width * height
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def slow_encode(box, reference, weights):
    (x1, y1, x2, y2), (a1, b1, a2, b2) = map(float, box), map(float, reference)
    w, h = a2 - a1, b2 - b1
    return [
        weights[0] * ((x1 + x2) / 2 - (a1 + a2) / 2) / w,
        weights[1] * ((y1 + y2) / 2 - (b1 + b2) / 2) / h,
        weights[2] * math.log((x2 - x1) / w),
        weights[3] * math.log((y2 - y1) / h),
    ]


def test_iou_is_that_of_a_loop(random_boxes):
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 40), random_boxes(rng, 30)
    b[0] = a[0]
    expected = [[slow_iou(p, q) for q in b.astype(float)] for p in a.astype(float)]
    np.testing.assert_allclose(iou(a, b), expected, atol=1e-6)
    np.testing.assert_allclose(iou(jnp.stack([a, a[::-1]]), b)[1], iou(a, b)[::-1], atol=1e-7)


def test_empty_boxes_have_an_iou_of_zero():
    empty = jnp.array([[5.0, 5, 5, 5], [9, 9, 3, 3]])
    assert not np.any(iou(empty, empty))
    assert not np.any(area(empty))


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (10.0, 10.0, 5.0, 5.0)])
def test_encode_is_the_formula_and_decode_its_inverse(weights, random_boxes):
    rng = np.random.default_rng(1)
    boxes, references = random_boxes(rng, 50), random_boxes(rng, 50)
    deltas = encode(boxes, references, weights)
    expected = [slow_encode(box, reference, weights) for box, reference in zip(boxes, references, strict=True)]
    np.testing.assert_allclose(deltas, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(decode(deltas, references, weights), boxes, rtol=1e-5, atol=1e-4)


def test_deltas_of_a_pixel_mean_what_the_paper_says():
    reference = jnp.array([10.0, 20, 30, 60])  # 20 wide, 40 high.
    np.testing.assert_allclose(decode(jnp.array([0.5, -0.25, math.log(2), 0]), reference), [10, 10, 50, 50], atol=1e-5)


def test_huge_and_degenerate_values_stay_finite():
    reference = jnp.array([[0.0, 0, 16, 16], [3, 3, 3, 3]])
    huge = decode(jnp.array([[0.0, 0, 1000, 1000]]), reference[:1])
    np.testing.assert_allclose(huge, [[-492, -492, 508, 508]], rtol=1e-5)
    assert np.all(np.isfinite(encode(reference, reference[::-1])))
    gradient = jax.grad(lambda boxes: jnp.sum(encode(boxes, reference[::-1])))(reference)
    assert np.all(np.isfinite(gradient))


def test_clip_and_least_sides():
    boxes = jnp.array([[-5.0, -5, 200, 300], [90, 10, 95, 20]])
    clipped = clip(boxes, jnp.array([50, 92]))
    np.testing.assert_array_equal(clipped, [[0, 0, 92, 50], [90, 10, 92, 20]])
    np.testing.assert_array_equal(at_least(clipped, 3.0), [True, False])
    # A box without an area, such as an anchor beyond the image once it is clipped, is of no size, and of none is 0.
    empty = clip(jnp.array([[95.0, 5, 99, 9], [5, 55, 9, 60], [5, 5, 9, 9]]), jnp.array([50, 92]))
    np.testing.assert_array_equal(at_least(empty, 0.0), [False, False, True])


def test_geometry_is_float32_whatever_it_is_given():
    boxes = jnp.array([[1000.0, 1000, 1003, 1001]], jnp.bfloat16)
    for result in (iou(boxes, boxes), encode(boxes, boxes), decode(boxes, boxes), clip(boxes, jnp.array([5, 5]))):
        assert result.dtype == jnp.float32
