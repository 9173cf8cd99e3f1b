"""Which ground-truth box each anchor or proposal is for, and which of them count in a training step."""

import jax
import jax.numpy as jnp
from jax import lax

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


def match(
    iou: jax.Array,
    gt_valid: jax.Array,
    positive: float,
    negative: tuple[float, float],
    low_quality: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """The ground truth of each box, and whether it is positive, negative or ignored.

    Args:
        iou: (N, G), of N anchors or proposals with G ground-truth boxes.
        gt_valid: (G,) bool, which of these there are; there may be none, and G may be 0.
        positive: boxes with an IoU of at least this are positive.
        negative: those with an IoU of at least the first and below the second number are negative, where they are not
            positive. The others are ignored. Without ground truth every IoU is 0.
        low_quality: also positive is, for each ground-truth box, whichever boxes have the largest IoU with it, if that
            is above 0 (Ren et al., arXiv 1506.01497, section 3.1.2, (i)). Like all others they are for the ground truth
            that they overlap most.

    Returns the index of the ground truth that each box overlaps most, the first of equal ones, (N,) int32, 0 where
    there is none; and (N,) int32: POSITIVE, NEGATIVE or IGNORED.
    """
    if not iou.shape[1]:
        iou, gt_valid = jnp.zeros((iou.shape[0], 1)), jnp.zeros(1, bool)
    iou = jnp.where(gt_valid, iou, -1.0)
    matched = jnp.argmax(iou, axis=1).astype(jnp.int32)
    best = jnp.maximum(jnp.max(iou, axis=1), 0)
    is_positive = best >= positive
    if low_quality:
        largest = jnp.max(iou, axis=0, initial=-1.0)
        is_positive |= jnp.any((iou == largest) & (largest > 0), axis=1)
    is_negative = (best >= negative[0]) & (best < negative[1])
    labels = jnp.where(is_positive, POSITIVE, jnp.where(is_negative, NEGATIVE, IGNORED))
    return matched, labels.astype(jnp.int32)


def sample_fixed(labels: jax.Array, count: int, fraction: float, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws ``count`` boxes, of which at most ``int(count * fraction)`` are positive and the rest negative.

    Args:
        labels: (N,), as ``match`` gives them.
        key: what the draw depends on. Each choice of as many positives, and of negatives, is equally likely.

    Returns indices (count,) int32, the positives first, and a mask (count,) bool: where there are too few of both, the
    last slots are 0 and do not count.
    """
    size = labels.shape[0]
    if not size:
        return jnp.zeros(count, jnp.int32), jnp.zeros(count, bool)
    # One-dimensional draws, of which box i's does not depend on how many follow: padding changes no sample.
    for_positives, for_negatives = (jax.random.uniform(part, (size,)) for part in jax.random.split(key))
    is_positive, is_negative = labels == POSITIVE, labels == NEGATIVE
    quota, most = min(int(count * fraction), size), min(count, size)
    positives = lax.top_k(jnp.where(is_positive, for_positives, -1.0), quota)[1]
    negatives = lax.top_k(jnp.where(is_negative, for_negatives, -1.0), most)[1]
    num_positive = jnp.minimum(jnp.sum(is_positive), quota)
    num_negative = jnp.minimum(jnp.sum(is_negative), count - num_positive)
    slot = jnp.arange(count)
    of_negatives = negatives[jnp.clip(slot - num_positive, 0, most - 1)]
    indices = jnp.where(slot < num_positive, jnp.pad(positives, (0, count - quota)), of_negatives)
    mask = slot < num_positive + num_negative
    return jnp.where(mask, indices, 0).astype(jnp.int32), mask
