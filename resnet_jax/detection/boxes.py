"""Boxes: [x1, y1, x2, y2] in pixels, x to the right, y downwards, of width x2 - x1 and height y2 - y1.

There is no "+ 1" anywhere: a box is a pair of corners on the plane, not a range of pixel numbers. Everything is
computed in float32, whatever it is given.
"""

import math

import jax
import jax.numpy as jnp

Weights = tuple[float, float, float, float]

LARGEST_LOG_SCALE = math.log(1000 / 16)
"""``decode`` makes a box at most 1000 / 16 times as large as its reference, as the published detectors do."""

_SMALLEST = 1e-6  # Sides of reference boxes, in pixels, so that padding does not divide by zero.


def area(boxes: jax.Array) -> jax.Array:
    """Of boxes (..., 4), in square pixels; 0 where x2 < x1 or y2 < y1. (...)."""
    sides = jnp.maximum(_float32(boxes)[..., 2:] - _float32(boxes)[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union, in [0, 1], of each of ``a`` (..., N, 4) with each of ``b`` (..., M, 4): (..., N, M).

    It is 0 where both boxes are empty.
    """
    inter = _intersection(a, b)
    union = area(a)[..., :, None] + area(b)[..., None, :] - inter
    return jnp.where(union > 0, inter / jnp.where(union > 0, union, 1), 0)


def _intersection(a: jax.Array, b: jax.Array) -> jax.Array:
    a, b = _float32(a)[..., :, None, :], _float32(b)[..., None, :, :]
    width = jnp.minimum(a[..., 2], b[..., 2]) - jnp.maximum(a[..., 0], b[..., 0])
    height = jnp.minimum(a[..., 3], b[..., 3]) - jnp.maximum(a[..., 1], b[..., 1])
    return jnp.maximum(width, 0) * jnp.maximum(height, 0)


def encode(boxes: jax.Array, references: jax.Array, weights: Weights = (1, 1, 1, 1)) -> jax.Array:
    """What ``decode`` makes ``boxes`` of, given ``references``: both (..., 4), to (..., 4).

    (x - x_r) / w_r, (y - y_r) / h_r, log(w / w_r) and log(h / h_r) of centres and sides, each times its weight
    (Girshick et al., arXiv 1311.2524, appendix C). Empty boxes give large but finite numbers.
    """
    (x, y, w, h), (xr, yr, wr, hr) = _centre_form(boxes), _centre_form(references)
    deltas = jnp.stack([(x - xr) / wr, (y - yr) / hr, jnp.log(w / wr), jnp.log(h / hr)], axis=-1)
    return deltas * jnp.asarray(weights, jnp.float32)


def decode(deltas: jax.Array, references: jax.Array, weights: Weights = (1, 1, 1, 1)) -> jax.Array:
    """Boxes (..., 4) of ``deltas`` (..., 4) and ``references`` (..., 4), whose leading axes may broadcast.

    The logarithms of the sides are limited to ``LARGEST_LOG_SCALE`` above, so that no prediction overflows.
    """
    dx, dy, dw, dh = jnp.moveaxis(_float32(deltas) / jnp.asarray(weights, jnp.float32), -1, 0)
    xr, yr, wr, hr = _centre_form(references)
    x, y = dx * wr + xr, dy * hr + yr
    w, h = (jnp.exp(jnp.minimum(d, LARGEST_LOG_SCALE)) * side / 2 for d, side in ((dw, wr), (dh, hr)))
    return jnp.stack([x - w, y - h, x + w, y + h], axis=-1)


def clip(boxes: jax.Array, image_hw: jax.Array) -> jax.Array:
    """Boxes (..., N, 4) cut to images of height and width ``image_hw`` (..., 2)."""
    height, width = _float32(image_hw)[..., None, 0], _float32(image_hw)[..., None, 1]
    return jnp.clip(_float32(boxes), 0, jnp.stack([width, height, width, height], axis=-1))


def at_least(boxes: jax.Array, side: float) -> jax.Array:
    """Whether boxes (..., 4) have an area and are at least ``side`` pixels wide and high: (...)."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return jnp.all((sides >= side) & (sides > 0), axis=-1)


def _centre_form(boxes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    x1, y1, x2, y2 = jnp.moveaxis(_float32(boxes), -1, 0)
    w, h = x2 - x1, y2 - y1
    return x1 + 0.5 * w, y1 + 0.5 * h, jnp.maximum(w, _SMALLEST), jnp.maximum(h, _SMALLEST)


def _float32(x: jax.Array) -> jax.Array:
    return jnp.asarray(x, jnp.float32)
