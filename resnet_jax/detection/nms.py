"""Non-maximum suppression, exact for every threshold and of static shape; and box voting."""

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.detection.boxes import iou

BLOCK = 512  # Boxes of which all pairs are compared at once.


def nms(
    boxes: jax.Array,
    scores: jax.Array,
    threshold: float,
    max_out: int,
    valid: jax.Array | None = None,
    groups: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Greedy suppression: by falling score, each box is kept unless one kept before has an IoU above the threshold.

    Args:
        boxes: (N, 4).
        scores: (N,). Of equal scores the first box comes first. Boxes whose score is not a number are left out.
        threshold: in [0, 1].
        max_out: the number of boxes wanted at most.
        valid: (N,) bool, which boxes there are; default all.
        groups: (N,) integers; boxes of different groups (classes, maps of a pyramid) do not suppress each other.

    Returns the indices of the kept boxes (max_out,) int32, by falling score, and which of them count (max_out,) bool;
    the others are 0. For a batch use ``jax.vmap``.

    The result is that of the sequential algorithm. Within a block of sorted boxes ``keep = valid and no kept box before
    suppresses it`` is repeated until nothing changes: after k rounds at least the first k are as the sequential
    algorithm leaves them, and a fixed point is its result. Blocks follow each other, each after what the kept
    boxes of those before suppress, until ``max_out`` are found.
    """
    count = scores.shape[0]
    if not count:
        return jnp.zeros(max_out, jnp.int32), jnp.zeros(max_out, bool)
    scores = jnp.asarray(scores, jnp.float32)
    there = ~jnp.isnan(scores) if valid is None else valid & ~jnp.isnan(scores)
    # Invalid boxes last; a stable sort keeps equal scores in order. (-inf is a score like others.)
    order = jnp.lexsort((-jnp.where(there, scores, 0), ~there))

    block = min(BLOCK, count)
    blocks = -(-count // block)
    extra = blocks * block - count
    sorted_boxes = jnp.pad(jnp.asarray(boxes, jnp.float32)[order], ((0, extra), (0, 0)))
    sorted_there = jnp.pad(there[order], (0, extra))
    sorted_groups = None if groups is None else jnp.pad(groups[order], (0, extra))

    def overlaps(a: jax.Array, b: jax.Array, group_a: jax.Array | None, group_b: jax.Array | None) -> jax.Array:
        over = iou(a, b) > threshold
        return over if group_a is None or group_b is None else over & (group_a[:, None] == group_b[None, :])

    earlier = jnp.arange(block)[:, None] < jnp.arange(block)[None, :]

    def one_block(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        index, keep = state
        start = index * block
        own = lax.dynamic_slice_in_dim(sorted_boxes, start, block)
        group = None if sorted_groups is None else lax.dynamic_slice_in_dim(sorted_groups, start, block)
        candidates = lax.dynamic_slice_in_dim(sorted_there, start, block)
        if blocks > 1:  # ``keep`` is still false from here on.
            suppressed = overlaps(sorted_boxes, own, sorted_groups, group) & keep[:, None]
            candidates &= ~jnp.any(suppressed, axis=0)
        suppresses = overlaps(own, own, group, group) & earlier
        kept = _fixed_point(suppresses, candidates)
        return index + 1, lax.dynamic_update_slice_in_dim(keep, kept, start, axis=0)

    def unfinished(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        index, keep = state
        some_left = sorted_there[jnp.minimum(index * block, blocks * block - 1)]  # The valid ones come first.
        return (index < blocks) & some_left & (jnp.sum(keep) < max_out)

    nothing = jnp.zeros_like(sorted_there)
    _, keep = lax.while_loop(unfinished, one_block, (jnp.zeros((), jnp.int32), nothing))
    keep = keep[:count]
    place = jnp.where(keep, jnp.cumsum(keep) - 1, max_out)
    indices = jnp.zeros(max_out, jnp.int32).at[place].set(order.astype(jnp.int32), mode="drop")
    return indices, jnp.arange(max_out) < jnp.sum(keep)


def _fixed_point(suppresses: jax.Array, candidates: jax.Array) -> jax.Array:
    """Of ``candidates`` (N,) those that no kept one suppresses: ``suppresses`` (N, N), above the diagonal."""

    def step(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        keep, _ = state
        new = candidates & ~jnp.any(suppresses & keep[:, None], axis=0)
        return new, jnp.any(new != keep)

    # The flag is made of the candidates so that it varies over a mesh as they do.
    return lax.while_loop(lambda state: state[1], step, (candidates, jnp.any(candidates)))[0]


def box_vote(
    kept: jax.Array,
    boxes: jax.Array,
    scores: jax.Array,
    threshold: float = 0.5,
    valid: jax.Array | None = None,
    kept_groups: jax.Array | None = None,
    groups: jax.Array | None = None,
) -> jax.Array:
    """Each of ``kept`` (D, 4) as the mean, weighted by score, of the ``boxes`` (N, 4) that have an IoU >= threshold.

    Args:
        kept: what ``nms`` kept of ``boxes``.
        scores: (N,), of 0 or more.
        valid: (N,) bool, which boxes vote; default all.
        kept_groups, groups: (D,) and (N,) integers; only boxes of the same group (class) vote.

    Boxes that get no votes are returned as they are. (D, 4). Gidaris and Komodakis, arXiv 1505.01749, section 5.
    """
    votes = (iou(kept, boxes) >= threshold) * jnp.maximum(jnp.asarray(scores, jnp.float32), 0)
    if valid is not None:
        votes = jnp.where(valid, votes, 0)
    if kept_groups is not None and groups is not None:
        votes = jnp.where(kept_groups[:, None] == groups, votes, 0)
    total = votes.sum(axis=1, keepdims=True)
    # Relative to the kept box, because float32 sums of large coordinates would lose what they differ by.
    moved = jnp.einsum("dn,dnc->dc", votes, boxes[None] - kept[:, None], precision="highest")
    return kept + jnp.where(total > 0, moved / jnp.where(total > 0, total, 1), 0)
