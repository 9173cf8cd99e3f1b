import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.detection.roi import Pooling, assign_levels, multilevel_roi_align, roi_align, roi_pool
from resnet_jax.errors import UserError


def slow_sample(image, y, x):
    """A bilinear sample as in torchvision's roi_align: 0 beyond one cell outside, else clamped to the map."""
    height, width = image.shape[:2]
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(image.shape[2])
    y, x = max(y, 0), max(x, 0)
    top, left = int(y), int(x)
    if top >= height - 1:
        top = bottom = y = height - 1
    else:
        bottom = top + 1
    if left >= width - 1:
        left = right = x = width - 1
    else:
        right = left + 1
    dy, dx = y - top, x - left
    upper = (1 - dx) * image[top, left] + dx * image[top, right]
    lower = (1 - dx) * image[bottom, left] + dx * image[bottom, right]
    return (1 - dy) * upper + dy * lower


def slow_align(image, box, scale, size, ratio, aligned):
    x1, y1, x2, y2 = (float(v) * scale - (0.5 if aligned else 0) for v in box)
    width, height = x2 - x1, y2 - y1
    if not aligned:
        width, height = max(width, 1), max(height, 1)
    result = np.zeros((size, size, image.shape[2]))
    for i in range(size):
        for j in range(size):
            for a in range(ratio):
                for b in range(ratio):
                    y = y1 + (i + (a + 0.5) / ratio) * height / size
                    x = x1 + (j + (b + 0.5) / ratio) * width / size
                    result[i, j] += slow_sample(image, y, x) / ratio**2
    return result


def slow_pool(image, box, scale, size):
    """RoIPool as in Caffe and torchvision."""
    height, width, channels = image.shape
    away = lambda v: int(math.copysign(math.floor(abs(v) + 0.5), v))  # noqa: E731
    x1, y1, x2, y2 = (away(np.float32(v) * np.float32(scale)) for v in box)
    bins_h, bins_w = (np.float32(max(n, 1)) / np.float32(size) for n in (y2 - y1 + 1, x2 - x1 + 1))
    result = np.zeros((size, size, channels), image.dtype)
    for i in range(size):
        for j in range(size):
            top, bottom = (min(max(int(f(np.float32(k) * bins_h)) + y1, 0), height) for f, k in both(i))
            left, right = (min(max(int(f(np.float32(k) * bins_w)) + x1, 0), width) for f, k in both(j))
            if bottom > top and right > left:
                result[i, j] = image[top:bottom, left:right].max(axis=(0, 1))
    return result


def both(i):
    return (math.floor, i), (math.ceil, i + 1)


def regions(rng, count, side, beyond):
    """Boxes in, and partly or wholly outside of, an image of this side; some empty or a few pixels wide."""
    low = rng.uniform(-beyond, side, (count, 2))
    high = low + rng.uniform(0, side, (count, 2))
    boxes = np.concatenate([low, high], axis=1).astype(np.float32)
    boxes[0] = [0, 0, side, side]
    boxes[1] = [side / 3, side / 3, side / 3 + 1, side / 3 + 1]
    return boxes if beyond else np.clip(boxes, 0, side)


@pytest.mark.parametrize("aligned", [False, True])
def test_both_forms_of_roi_align_are_the_loop_with_its_gradient(aligned):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 9, 7, 3)).astype(np.float32)
    boxes = np.stack([regions(rng, 12, 70, 40) for _ in range(2)])
    expected = [
        [slow_align(image, box, 0.125, 4, 2, aligned) for box in each]
        for image, each in zip(features, boxes, strict=True)
    ]
    weights = rng.normal(size=np.shape(expected)).astype(np.float32)

    def run(features, form):
        pooled = roi_align(features, boxes, 0.125, 4, 2, aligned, form)
        return jnp.sum(pooled * weights), pooled

    results = {form: jax.jit(jax.value_and_grad(partial(run, form=form), has_aux=True))(features) for form in FORMS}
    for (_, pooled), _ in results.values():
        np.testing.assert_allclose(pooled, expected, atol=1e-5)
    np.testing.assert_allclose(results["einsum"][1], results["gather"][1], atol=1e-4)
    # The loop is linear in the features, so that its gradient is what it makes of each cell.
    unit = np.zeros_like(features[0])
    unit[4, 3, 1] = 1
    slope = sum(
        np.sum(slow_align(unit, box, 0.125, 4, 2, aligned) * w) for box, w in zip(boxes[1], weights[1], strict=True)
    )
    np.testing.assert_allclose(results["einsum"][1][1, 4, 3, 1], slope, atol=1e-4)
    assert abs(slope) > 1e-3


FORMS = ("einsum", "gather")


@pytest.mark.parametrize("size", [7, 14])
@pytest.mark.parametrize("beyond", [0, 60], ids=["inside", "beyond"])
@pytest.mark.extensive
def test_roi_pool_is_exact(size, beyond):
    rng = np.random.default_rng(1)
    features = rng.normal(size=(2, 20, 33, 2)).astype(np.float32)
    boxes = np.stack([regions(rng, 25, 320, beyond) for _ in range(2)])
    pooled = jax.jit(partial(roi_pool, scale=1 / 16, size=size, inside=not beyond))(features, boxes)
    expected = [
        [slow_pool(image, box, 1 / 16, size) for box in each] for image, each in zip(features, boxes, strict=True)
    ]
    np.testing.assert_array_equal(pooled, expected)


@pytest.mark.extensive
def test_the_gradient_of_roi_pool_goes_to_the_largest():
    features = jnp.arange(64.0).reshape(1, 8, 8, 1)
    boxes = jnp.array([[[0.0, 0, 7, 7]]])
    gradient = jax.grad(lambda x: jnp.sum(roi_pool(x, boxes, 1.0, 2)))(features)[0, :, :, 0]
    expected = np.zeros((8, 8))
    expected[[3, 3, 7, 7], [3, 7, 3, 7]] = 1
    np.testing.assert_array_equal(gradient, expected)


def test_levels_are_those_of_the_formula():
    sides = np.array([1.0, 16, 111.9, 112, 223.9, 224, 447.9, 448, 895.9, 896, 5000, 0])
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=1)
    np.testing.assert_array_equal(assign_levels(boxes, (4, 8, 16, 32)), [0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 3, 0])


@pytest.mark.extensive
def test_a_pyramid_is_read_on_the_level_of_each_box():
    rng = np.random.default_rng(2)
    pyramid = [jnp.asarray(rng.normal(size=(1, 64 // s, 64 // s, 2)), jnp.float32) for s in (4, 8, 16)]
    boxes = regions(rng, 10, 64, 10)[None] * 1.5
    strides, canonical = (4, 8, 16), (32, 3)
    pooled = multilevel_roi_align(pyramid, boxes, strides, 3, canonical=canonical)
    levels = np.asarray(assign_levels(boxes, strides, canonical))
    assert len(set(levels[0])) == 3
    for level, stride in enumerate(strides):
        alone = roi_align(pyramid[level], boxes, 1 / stride, 3)
        np.testing.assert_allclose(pooled[levels == level], alone[levels == level], atol=1e-5)


@pytest.mark.extensive
def test_coordinates_stay_float32_for_bfloat16_features():
    rng = np.random.default_rng(3)
    features = jnp.asarray(rng.normal(size=(1, 40, 60, 4)), jnp.bfloat16)
    boxes = jnp.array([[[600.3, 402.7, 811.1, 633.2]]])
    exact = roi_align(features.astype(jnp.float32), boxes, 1 / 16, 7)
    for form in FORMS:
        pooled = roi_align(features, boxes, 1 / 16, 7, form=form)
        assert pooled.dtype == jnp.bfloat16
        np.testing.assert_allclose(pooled.astype(jnp.float32), exact, atol=0.05)


def test_unknown_forms_are_refused():
    with pytest.raises(UserError, match="op is 'alig'; it must be 'align' or 'pool'"):
        Pooling("alig")((jnp.zeros((1, 4, 4, 1)),), (16,), jnp.zeros((1, 1, 4)))
    with pytest.raises(UserError, match="form is 'sum'; it must be 'einsum' or 'gather'"):
        roi_align(jnp.zeros((1, 4, 4, 1)), jnp.zeros((1, 1, 4)), 1 / 16, 2, form="sum")
