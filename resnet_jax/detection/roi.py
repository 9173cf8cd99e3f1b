"""Pooling of regions of interest: RoIAlign, on one map or a pyramid, and RoIPool.

Maps are (B, H, W, C), boxes (B, R, 4) in pixels of the image, and the result is (B, R, size, size, C) in the maps'
dtype, in which the products are summed, too. Coordinates are float32 in any case.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.detection.boxes import area
from resnet_jax.detection.checks import check_one_of
from resnet_jax.errors import UserError

Form: TypeAlias = Literal["einsum", "gather"]
PoolingOp: TypeAlias = Literal["align", "pool"]


def roi_align(
    features: jax.Array,
    boxes: jax.Array,
    scale: float,
    size: int,
    sampling_ratio: int = 2,
    aligned: bool = False,
    form: Form = "einsum",
) -> jax.Array:
    """RoIAlign of one map (He et al., arXiv 1703.06870, section 3), with torchvision's treatment of edges.

    Args:
        features: (B, H, W, C).
        boxes: (B, R, 4), in pixels of the image; they may reach beyond it.
        scale: of the map against the image, 1 / stride.
        size: bins on each side.
        sampling_ratio: each bin is the mean of as many by as many bilinear samples. (It is fixed here; an adaptive
            number would not be of static shape.)
        aligned: shift by half a pixel, so that the centre of a map's first cell is at 0.5; without, boxes are at least
            one cell wide and high.
        form: "einsum", two products of matrices, for maps that are not large against the number of RoIs; or "gather",
            which reads four cells for each sample. They agree to rounding.

    A sample more than one cell beyond the map is 0; others beyond its edge take the edge's value.
    """
    check_one_of("form", form, Form)
    if form == "gather":
        levels = jnp.zeros(boxes.shape[:2], jnp.int32)
        return _gather_align([features], boxes, levels, (scale,), size, sampling_ratio, aligned)
    boxes = jnp.asarray(boxes, jnp.float32) * scale
    rows, columns = (
        _weights(_positions(boxes, axis, size, sampling_ratio, aligned), length, sampling_ratio).astype(features.dtype)
        for axis, length in ((1, features.shape[1]), (0, features.shape[2]))
    )
    return jnp.einsum("bhwc,brih,brjw->brijc", features, rows, columns)


def multilevel_roi_align(
    features: Sequence[jax.Array],
    boxes: jax.Array,
    strides: Sequence[int],
    size: int,
    sampling_ratio: int = 2,
    aligned: bool = False,
    canonical: tuple[int, int] = (224, 4),
) -> jax.Array:
    """RoIAlign where each box reads one map of a pyramid, by its size (``assign_levels``).

    ``features`` are (B, H_i, W_i, C) of these strides, the finest first; the rest is as for ``roi_align``.
    """
    levels = assign_levels(boxes, strides, canonical)
    scales = tuple(1 / stride for stride in strides)
    return _gather_align(features, boxes, levels, scales, size, sampling_ratio, aligned)


def assign_levels(boxes: jax.Array, strides: Sequence[int], canonical: tuple[int, int] = (224, 4)) -> jax.Array:
    """The index of the map for each box (..., 4): a box of ``canonical[0]``² pixels reads that of stride
    2**canonical[1], one twice as large the next (Lin et al., arXiv 1612.03144, equation 1). (...) int32.

    The strides are powers of two, each twice the one before.
    """
    side, level = canonical
    finest = strides[0].bit_length() - 1
    # The small number is torchvision's: sizes of exactly 2**k times the canonical one fall on the right side.
    found = jnp.floor(level + jnp.log2(jnp.sqrt(area(boxes)) / side) + 1e-6)
    return jnp.clip(found - finest, 0, len(strides) - 1).astype(jnp.int32)


def roi_pool(features: jax.Array, boxes: jax.Array, scale: float, size: int, inside: bool = False) -> jax.Array:
    """RoIPool: the largest value in each of ``size`` x ``size`` bins (Girshick, arXiv 1504.08083, section 2.1). Exact.

    Args:
        features: (B, H, W, C).
        boxes: (B, R, 4), in pixels of the image.
        scale: of the map against the image, 1 / stride.
        size: bins on each side.
        inside: the caller's word that all boxes lie in the image, which saves most of the memory.

    As in Caffe and torchvision the corners are rounded to cells, both of which belong to the region; bins overlap where
    the region's side is no multiple of ``size``, and a bin without any cell is 0. The largest values come from a table
    of the maxima over all windows of 1, 2, 4, ... by 1, 2, 4, ... cells: a bin is the union of four of them. Where
    several cells of a bin are the largest, the gradient is shared between them.
    """
    height, width = features.shape[1:3]
    # Halves away from zero, as C rounds.
    corners = lax.stop_gradient(jnp.asarray(boxes, jnp.float32)) * scale
    corners = jnp.sign(corners) * jnp.floor(jnp.abs(corners) + 0.5)
    top, bottom, rows = _bins(corners[..., 1], corners[..., 3], size, height)
    left, right, columns = _bins(corners[..., 0], corners[..., 2], size, width)
    levels_y, levels_x = (_levels(length, size, inside) for length in (height, width))
    table = _range_maxima(features, levels_y, levels_x)  # (B, levels_y * levels_x * H * W, C)

    level_y, level_x = jnp.minimum(_log2(rows), levels_y - 1), jnp.minimum(_log2(columns), levels_x - 1)
    second_y, second_x = bottom - (1 << level_y), right - (1 << level_x)
    result: jax.Array | None = None
    for y in (top, second_y):
        for x in (left, second_x):
            level = level_y[..., :, None] * levels_x + level_x[..., None, :]
            index = (level * height + y[..., :, None]) * width + x[..., None, :]
            values = _take(table, index)
            result = values if result is None else jnp.maximum(result, values)
    assert result is not None
    filled = (rows > 0)[..., :, None] & (columns > 0)[..., None, :]
    return jnp.where(filled[..., None], result, 0)


def _bins(first: jax.Array, last: jax.Array, size: int, length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of regions of cells (...), the bins' first cells, ends and numbers of cells on the map: (..., size) int32."""
    # The bins' ends turn on the last bit of this division, which XLA would make a product with 1 / size.
    cells = jnp.maximum(last - first + 1, 1)
    bin_size = (cells / lax.optimization_barrier(jnp.full_like(cells, size)))[..., None]
    number = jnp.arange(size, dtype=jnp.float32)
    start = jnp.clip(jnp.floor(number * bin_size) + first[..., None], 0, length)
    end = jnp.clip(jnp.ceil((number + 1) * bin_size) + first[..., None], 0, length)
    return start.astype(jnp.int32), end.astype(jnp.int32), jnp.maximum(end - start, 0).astype(jnp.int32)


def _levels(length: int, size: int, inside: bool) -> int:
    """How many powers of two, from 1, are needed for the bins on a map of ``length`` cells."""
    # A region in the image has at most length + 1 cells; rounding both ends adds up to two to a bin.
    longest = min(length, (length + 1) // size + 2) if inside else length
    return max(longest, 1).bit_length()


def _log2(count: jax.Array) -> jax.Array:
    """The logarithm of positive integers, rounded down; 0 of 0."""
    return 31 - lax.clz(jnp.maximum(count, 1))


def _range_maxima(features: jax.Array, levels_y: int, levels_x: int) -> jax.Array:
    """(B, levels_y * levels_x * H * W, C): the maxima over the windows of 2**i x 2**j cells that begin at each cell."""

    def doubled(x: jax.Array, axis: int, reach: int) -> jax.Array:
        # Windows that reach beyond the map are never read; they keep what there is.
        shifted = lax.slice_in_dim(x, reach, x.shape[axis], axis=axis)
        shifted = jnp.concatenate([shifted, lax.slice_in_dim(x, x.shape[axis] - reach, None, axis=axis)], axis=axis)
        return jnp.maximum(x, shifted)

    tables = []
    by_rows = features
    for i in range(levels_y):
        if i:
            by_rows = doubled(by_rows, 1, 2 ** (i - 1))
        both = by_rows
        for j in range(levels_x):
            if j:
                both = doubled(both, 2, 2 ** (j - 1))
            tables.append(both)
    batch, channels = features.shape[0], features.shape[3]
    return jnp.stack(tables, axis=1).reshape(batch, -1, channels)


def _positions(boxes: jax.Array, axis: int, size: int, sampling_ratio: int, aligned: bool) -> jax.Array:
    """Where the samples of boxes (..., 4) in cells of a map lie on an axis (0: x, 1: y): (..., size * ratio)."""
    first, last = boxes[..., axis], boxes[..., axis + 2]
    length = last - first if aligned else jnp.maximum(last - first, 1.0)
    step = (jnp.arange(size * sampling_ratio, dtype=jnp.float32) + 0.5) / (size * sampling_ratio)
    return first[..., None] - (0.5 if aligned else 0.0) + step * length[..., None]


def _neighbours(positions: jax.Array, length: jax.Array | int) -> tuple[tuple[jax.Array, jax.Array], ...]:
    """The cell before and the cell after each position on an axis of ``length`` cells, each with its weight."""
    inside = (positions >= -1) & (positions <= length)
    clamped = jnp.clip(positions, 0, length - 1)
    before = jnp.floor(clamped)
    part = clamped - before
    cell = before.astype(jnp.int32)
    after = jnp.minimum(cell + 1, length - 1)
    return (cell, jnp.where(inside, 1 - part, 0)), (after, jnp.where(inside, part, 0))


def _weights(positions: jax.Array, length: int, sampling_ratio: int) -> jax.Array:
    """How much of each cell each bin has, on one axis: positions (..., size * ratio) to (..., size, length)."""
    cells = jnp.arange(length)
    each = sum(
        jnp.where(cell[..., None] == cells, weight[..., None], 0) for cell, weight in _neighbours(positions, length)
    )
    return jnp.mean(jnp.asarray(each).reshape(*positions.shape[:-1], -1, sampling_ratio, length), axis=-2)


def _gather_align(
    features: Sequence[jax.Array],
    boxes: jax.Array,
    levels: jax.Array,
    scales: Sequence[float],
    size: int,
    sampling_ratio: int,
    aligned: bool,
) -> jax.Array:
    """RoIAlign of boxes (B, R, 4), each on the map that ``levels`` (B, R) names, by reading single cells."""
    batch, channels = features[0].shape[0], features[0].shape[3]
    flat = jnp.concatenate([level.reshape(batch, -1, channels) for level in features], axis=1)
    heights, widths = (jnp.asarray([level.shape[axis] for level in features])[levels] for axis in (1, 2))
    sizes = [level.shape[1] * level.shape[2] for level in features]
    start = jnp.asarray([sum(sizes[:i]) for i in range(len(sizes))])[levels]
    boxes = jnp.asarray(boxes, jnp.float32) * jnp.asarray(scales, jnp.float32)[levels][..., None]

    # (B, R, size, ratio): the samples of a bin are on the last axis.
    split = (*boxes.shape[:2], size, sampling_ratio)
    rows = _neighbours(_positions(boxes, 1, size, sampling_ratio, aligned).reshape(split), heights[..., None, None])
    columns = _neighbours(_positions(boxes, 0, size, sampling_ratio, aligned).reshape(split), widths[..., None, None])
    result = jnp.zeros((*boxes.shape[:2], size, size, channels), features[0].dtype)
    # A reading for each sample of a bin and each of its four cells, so that nothing is larger than the result.
    for row, row_weight in rows:
        for column, column_weight in columns:
            for i in range(sampling_ratio):
                for j in range(sampling_ratio):
                    offset = start[..., None, None] + row[..., :, None, i] * widths[..., None, None]
                    weight = row_weight[..., :, None, i] * column_weight[..., None, :, j] / sampling_ratio**2
                    values = _take(flat, offset + column[..., None, :, j])
                    result += values * weight[..., None].astype(result.dtype)
    return result


def _take(rows: jax.Array, index: jax.Array) -> jax.Array:
    """For each example of a batch, the rows (N, C) that ``index`` (...) names: (B, ..., C)."""
    return jax.vmap(lambda rows, index: jnp.take(rows, index, axis=0, mode="clip"))(rows, index)


class Pooling(NamedTuple):
    """How regions are pooled: ``roi_align``, on several maps ``multilevel_roi_align``, or ``roi_pool``, on one map."""

    op: PoolingOp = "align"
    size: int = 7
    sampling_ratio: int = 2
    aligned: bool = False

    def __call__(self, maps: tuple[jax.Array, ...], strides: tuple[int, ...], boxes: jax.Array) -> jax.Array:
        """Maps (B, H_i, W_i, C) and boxes (B, R, 4) within the image to (B, R, size, size, C). Raises UserError."""
        check_one_of("op", self.op, PoolingOp)
        if self.op == "pool":
            if len(maps) > 1:
                raise UserError("RoIPool reads one map; a pyramid needs RoIAlign")
            return roi_pool(maps[0], boxes, 1 / strides[0], self.size, inside=True)
        if len(maps) > 1:
            return multilevel_roi_align(maps, boxes, strides, self.size, self.sampling_ratio, self.aligned)
        return roi_align(maps[0], boxes, 1 / strides[0], self.size, self.sampling_ratio, self.aligned)
