"""The region proposal network: its head, its losses, and proposals (Ren et al., arXiv 1506.01497, section 3)."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.detection.boxes import at_least, clip, decode, encode, iou
from resnet_jax.detection.nms import nms
from resnet_jax.detection.sampling import IGNORED, POSITIVE, match, sample_fixed
from resnet_jax.kernels import PLAIN, Kernels
from resnet_jax.models.layers import Conv

new_layer_init = nn.initializers.normal(0.01)
"""Of the layers that no classification network has (section 3.1.3 there; appendix A here)."""


class RPNSettings(NamedTuple):
    """How a region proposal network is trained and read. The defaults are those of detectron2 and torchvision.

    positive: IoU with a ground-truth box from which an anchor is positive. So is whichever has the largest.
    negative: below this largest IoU it is negative; between the two it is ignored.
    samples: anchors of each image that count in the losses.
    fraction: of positive ones among these, at most.
    straddle: in training, anchors that reach further than so many pixels beyond the image are ignored; None: all count.
    beta: where the box loss turns from a square into a line (``smooth_l1``).
    train_pre_nms, test_pre_nms: boxes with the largest scores that each map gives to the suppression.
    train_post_nms, test_post_nms: proposals of an image.
    nms: the threshold of the suppression, in which maps do not see each other.
    min_size: boxes that are narrower or lower, in pixels, are no proposals.
    """

    positive: float = 0.7
    negative: float = 0.3
    samples: int = 256
    fraction: float = 0.5
    straddle: float | None = None
    beta: float = 1 / 9
    train_pre_nms: int = 2000
    train_post_nms: int = 2000
    test_pre_nms: int = 1000
    test_post_nms: int = 1000
    nms: float = 0.7
    min_size: float = 1e-3


class Proposals(NamedTuple):
    """boxes (B, R, 4) in the image, scores (B, R) (logits) that fall, and valid (B, R) bool: which of them count."""

    boxes: jax.Array
    scores: jax.Array
    valid: jax.Array


class RPNHead(nn.Module):
    """3x3 convolution with ReLU, and two sibling 1x1 convolutions: a score and a box for each anchor of each position.

    num_anchors: at each position.
    channels: of the 3x3 convolution.
    """

    num_anchors: int
    channels: int
    dtype: jnp.dtype = jnp.float32
    kernels: Kernels = PLAIN

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A map (B, H, W, C) to logits (B, H * W * A) and deltas (B, H * W * A, 4), float32, for ``decode``.

        The order is that of the anchors.
        """

        def conv(filters: int, size: int, name: str) -> Conv:
            return Conv(
                filters,
                size,
                use_bias=True,
                dtype=self.dtype,
                kernel_init=new_layer_init,
                kernels=self.kernels,
                name=name,
            )

        hidden = nn.relu(conv(self.channels, 3, "conv")(x))
        scores, deltas = conv(self.num_anchors, 1, "cls")(hidden), conv(4 * self.num_anchors, 1, "box")(hidden)
        return (
            scores.astype(jnp.float32).reshape(len(x), -1),
            deltas.astype(jnp.float32).reshape(len(x), -1, 4),
        )


def propose(
    scores: Sequence[jax.Array],
    deltas: Sequence[jax.Array],
    anchors: Sequence[jax.Array],
    image_hw: jax.Array,
    settings: RPNSettings,
    train: bool = False,
) -> Proposals:
    """The proposals of each image: the best boxes of each map, decoded, cut to the image and suppressed map by map.

    Args:
        scores: of each map, (B, N_i) logits.
        deltas: (B, N_i, 4).
        anchors: (N_i, 4).
        image_hw: (B, 2), height and width in pixels of the images, which may lie in larger arrays.
        settings: how many, and the thresholds.
        train: take the numbers for training.

    No gradient flows back (approximate joint training).
    """
    before = settings.train_pre_nms if train else settings.test_pre_nms
    after = settings.train_post_nms if train else settings.test_post_nms
    best_boxes, best_scores, maps = [], [], []
    for level, (score, delta, anchor) in enumerate(zip(scores, deltas, anchors, strict=True)):
        count = min(before, score.shape[1])
        top, index = lax.top_k(lax.stop_gradient(jnp.asarray(score)), count)
        chosen = jnp.take_along_axis(lax.stop_gradient(delta), index[..., None], axis=1)
        best_boxes.append(clip(decode(chosen, jnp.asarray(anchor)[index]), image_hw))
        best_scores.append(top)
        maps.append(jnp.full(count, level))
    groups = jnp.concatenate(maps)

    def suppress(boxes: jax.Array, logits: jax.Array) -> Proposals:
        kept, valid = nms(boxes, logits, settings.nms, after, at_least(boxes, settings.min_size), groups)
        return Proposals(jnp.where(valid[:, None], boxes[kept], 0), jnp.where(valid, logits[kept], -jnp.inf), valid)

    return jax.vmap(suppress)(jnp.concatenate(best_boxes, axis=1), jnp.concatenate(best_scores, axis=1))


def rpn_losses(
    scores: jax.Array,
    deltas: jax.Array,
    anchors: jax.Array,
    image_hw: jax.Array,
    gt_boxes: jax.Array,
    gt_valid: jax.Array,
    settings: RPNSettings,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """(objectness, box) losses: the mean binary cross-entropy of the sampled anchors, and smooth L1 over their number.

    Args:
        scores: (B, N) logits of all maps.
        deltas: (B, N, 4).
        anchors: (N, 4).
        image_hw: (B, 2).
        gt_boxes: (B, G, 4), in any order and with any padding.
        gt_valid: (B, G) bool.
        settings: thresholds and sizes of the samples.
        key: of the samples.
    """
    anchors, gt_boxes = jnp.asarray(anchors, jnp.float32), jnp.asarray(gt_boxes, jnp.float32)

    def targets(key: jax.Array, hw: jax.Array, boxes: jax.Array, valid: jax.Array) -> tuple[jax.Array, ...]:
        overlaps = iou(anchors, boxes)
        within = jnp.ones(len(anchors), bool)
        if settings.straddle is not None:
            reach = hw[::-1] + settings.straddle
            within = jnp.all((anchors[:, :2] >= -settings.straddle) & (anchors[:, 2:] <= reach), axis=1)
            # An anchor that is ignored is not the best for any ground truth either.
            overlaps = jnp.where(within[:, None], overlaps, 0.0)
        matched, labels = match(overlaps, valid, settings.positive, (0.0, settings.negative), low_quality=True)
        labels = jnp.where(within, labels, IGNORED)
        index, mask = sample_fixed(labels, settings.samples, settings.fraction, key)
        positive = mask & (labels[index] == POSITIVE)
        target = boxes[matched[index]] if boxes.shape[0] else jnp.zeros((len(index), 4))
        reference = anchors[index]
        # Where nothing is to be learned the target is the anchor itself, so that no infinity is multiplied by 0.
        return index, mask, positive, encode(jnp.where(positive[:, None], target, reference), reference)

    index, mask, positive, target = jax.vmap(targets)(
        jax.random.split(key, len(scores)), jnp.asarray(image_hw, jnp.float32), gt_boxes, gt_valid
    )
    logits = jnp.take_along_axis(scores, index, axis=1)
    predicted = jnp.take_along_axis(deltas, index[..., None], axis=1)
    count = jnp.maximum(mask.sum(), 1)
    entropy = nn.softplus(logits) - logits * positive
    distance = smooth_l1(predicted - target, settings.beta).sum(axis=-1)
    return jnp.where(mask, entropy, 0).sum() / count, jnp.where(positive, distance, 0).sum() / count


def smooth_l1(difference: jax.Array, beta: float) -> jax.Array:
    """d² / (2 beta) below ``beta``, |d| - beta / 2 above; |d| with beta 0 (arXiv 1504.08083, equation 3).

    The papers' sigma is 1 / sqrt(beta): 3 for the RPN (beta 1 / 9), 1 for the boxes of the second stage.
    """
    absolute = jnp.abs(difference)
    if not beta:
        return absolute
    return jnp.where(absolute < beta, 0.5 * difference**2 / beta, absolute - 0.5 * beta)
