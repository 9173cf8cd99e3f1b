"""The second stage of Faster R-CNN: what it is trained with, its losses, and detections out of what it says.

Of K classes the first of K + 1 scores is the background's. The first stage, the proposal network, is ``rpn``.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.detection.boxes import Weights, at_least, clip, decode, encode, iou
from resnet_jax.detection.nms import box_vote, nms
from resnet_jax.detection.rpn import Proposals, smooth_l1
from resnet_jax.detection.sampling import POSITIVE, match, sample_fixed
from resnet_jax.detection.targets import Targets


class BoxSettings(NamedTuple):
    """How the second stage is trained and read. The defaults are those of detectron2 and torchvision, but for beta.

    positive: IoU with a ground-truth box from which a proposal is an example of its class.
    negative: proposals with an IoU of at least the first and below the second are background.
    samples: proposals of each image that count in the losses.
    fraction: of positive ones among these, at most.
    weights: of the box coding.
    beta: of ``smooth_l1``: 1 in Fast R-CNN, 1 / 9 in torchvision, 0 in detectron2.
    min_score: detections have a larger probability.
    candidates: boxes with the largest probabilities of an image, over all classes, that the suppression is given.
    nms: its threshold; classes do not see each other.
    vote: None; or the IoU from which suppressed boxes take part in box voting (appendix B; 0.5 in arXiv 1505.01749).
    detections: of an image at most.
    min_size: narrower or lower boxes, in pixels, are no detections.
    """

    positive: float = 0.5
    negative: tuple[float, float] = (0.0, 0.5)
    samples: int = 512
    fraction: float = 0.25
    weights: Weights = (10.0, 10.0, 5.0, 5.0)
    beta: float = 1.0
    min_score: float = 0.05
    candidates: int = 2000
    nms: float = 0.5
    vote: float | None = None
    detections: int = 100
    min_size: float = 1e-2


class Predictions(NamedTuple):
    """What the second stage says of each proposal.

    boxes: (B, R, 4), the proposals.
    valid: (B, R) bool.
    probabilities: (B, R, K + 1), the background's first.
    deltas: (B, R, K, 4), for ``decode``, for each class.
    """

    boxes: jax.Array
    valid: jax.Array
    probabilities: jax.Array
    deltas: jax.Array


class Detections(NamedTuple):
    """boxes (B, D, 4) in the image, scores (B, D) that fall, labels (B, D) of 0 to K - 1, valid (B, D) bool.

    overflow: (B,) int32, how many boxes above ``min_score`` the suppression was not given because there were more than
    ``candidates``; their scores are below those of all that it was given.
    """

    boxes: jax.Array
    scores: jax.Array
    labels: jax.Array
    valid: jax.Array
    overflow: jax.Array


class BoxSample(NamedTuple):
    """The proposals of each image that count in the losses.

    boxes (B, S, 4); mask (B, S), which slots are filled; classes (B, S), 0 for background, 1 to K; deltas (B, S, 4),
    what is to be predicted where it is not background.
    """

    boxes: jax.Array
    mask: jax.Array
    classes: jax.Array
    deltas: jax.Array


def sample_boxes(proposals: Proposals, targets: Targets, settings: BoxSettings, key: jax.Array) -> BoxSample:
    """Draws from the proposals and the ground truth of each image what its second stage is trained with."""

    def of_image(
        key: jax.Array, boxes: jax.Array, valid: jax.Array, gt: jax.Array, gt_labels: jax.Array, gt_valid: jax.Array
    ) -> BoxSample:
        # The ground truth comes last, so that its padding does not change the draws for the proposals.
        boxes = jnp.concatenate([boxes, jnp.where(gt_valid[:, None], jnp.asarray(gt, jnp.float32), 0)])
        valid = jnp.concatenate([valid, gt_valid])
        matched, labels = match(iou(boxes, gt), gt_valid, settings.positive, settings.negative)
        index, mask = sample_fixed(jnp.where(valid, labels, -1), settings.samples, settings.fraction, key)
        positive = mask & (labels[index] == POSITIVE)
        chosen = boxes[index]
        if gt.shape[0]:
            target, classes = gt[matched[index]], gt_labels[matched[index]] + 1
        else:
            target, classes = chosen, jnp.zeros(len(index), jnp.int32)
        deltas = encode(jnp.where(positive[:, None], target, chosen), chosen, settings.weights)
        return BoxSample(chosen, mask, jnp.where(positive, classes, 0).astype(jnp.int32), deltas)

    keys = jax.random.split(key, len(proposals.boxes))
    return lax.stop_gradient(jax.vmap(of_image)(keys, proposals.boxes, proposals.valid, *targets))


def box_losses(logits: jax.Array, deltas: jax.Array, sample: BoxSample, beta: float) -> dict[str, jax.Array]:
    """ "classifier": the mean cross-entropy of the sample; "box": smooth L1 of its positives, over the sample's size.

    logits (B, S, K + 1), deltas (B, S, K, 4).
    """
    count = jnp.maximum(sample.mask.sum(), 1)
    entropy = -jnp.take_along_axis(nn.log_softmax(logits), sample.classes[..., None], axis=-1)[..., 0]
    own = jnp.maximum(sample.classes - 1, 0)[..., None, None]
    predicted = jnp.take_along_axis(deltas, own, axis=2)[:, :, 0]
    distance = smooth_l1(predicted - sample.deltas, beta).sum(axis=-1)
    return {
        "classifier": jnp.where(sample.mask, entropy, 0).sum() / count,
        "box": jnp.where(sample.mask & (sample.classes > 0), distance, 0).sum() / count,
    }


def detect(predictions: Predictions, image_hw: jax.Array, settings: BoxSettings) -> Detections:
    """A box for each proposal and class above ``min_score``; suppression, class by class; the best of all classes."""

    def of_image(boxes: jax.Array, valid: jax.Array, scores: jax.Array, deltas: jax.Array, hw: jax.Array) -> Detections:
        classes = deltas.shape[1]
        flat = jnp.where(valid[:, None], scores[:, 1:], -1.0).reshape(-1)
        count = min(settings.candidates, flat.shape[0])
        top, index = lax.top_k(flat, count)
        proposal, label = index // classes, index % classes
        candidates = clip(decode(deltas[proposal, label], boxes[proposal], settings.weights), hw)
        there = (top > settings.min_score) & at_least(candidates, settings.min_size)
        kept, found = nms(candidates, top, settings.nms, settings.detections, there, label)
        result = candidates[kept]
        if settings.vote is not None:
            result = box_vote(result, candidates, top, settings.vote, there, label[kept], label)
        overflow = jnp.sum(flat > settings.min_score) - jnp.sum(top > settings.min_score)
        return Detections(
            jnp.where(found[:, None], result, 0),
            jnp.where(found, top[kept], 0),
            jnp.where(found, label[kept], 0).astype(jnp.int32),
            found,
            overflow.astype(jnp.int32),
        )

    return jax.vmap(of_image)(*predictions, jnp.asarray(image_hw, jnp.float32))
