"""What Table 9 adds at test time: box refinement, multi-scale testing and ensembles (appendix B).

Each gives ``Predictions`` for ``detect``. Global context, which is trained, is a field of ``FasterRCNN``. For the
paper's box voting set ``BoxSettings.vote``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from resnet_jax.detection.boxes import area, at_least, clip, decode
from resnet_jax.detection.faster_rcnn import FasterRCNN
from resnet_jax.detection.rpn import Proposals
from resnet_jax.detection.second_stage import BoxSettings, Predictions

Maps = tuple[jax.Array, ...]


def refine(
    predict: Callable[[Proposals], Predictions], predictions: Predictions, image_hw: jax.Array, settings: BoxSettings
) -> Predictions:
    """Box refinement: the predictions for the proposals together with those for the boxes that are predicted for them.

    Args:
        predict: what gives the predictions for proposals, such as a detector's ``predict`` on the maps of the images.
        predictions: those for R proposals.
        image_hw: (B, 2).
        settings: the detector's ``box``.

    ``detect`` then has the 2 R predictions of both: suppression at 0.3 and voting, as the paper has it.
    """
    return union(predictions, predict(refined_regions(predictions, image_hw, settings)))


def refined_regions(predictions: Predictions, image_hw: jax.Array, settings: BoxSettings) -> Proposals:
    """The regions that ``refine`` pools anew.

    Each proposal gives one, its box for the class, other than the background, that is the most likely; the paper does
    not say which.
    """
    best = jnp.argmax(predictions.probabilities[..., 1:], axis=-1)[..., None, None]
    deltas = jnp.take_along_axis(predictions.deltas, best, axis=2)[:, :, 0]
    boxes = clip(decode(deltas, predictions.boxes, settings.weights), image_hw)
    valid = predictions.valid & at_least(boxes, settings.min_size)
    return Proposals(boxes, jnp.zeros(boxes.shape[:2]), valid)


def union(*predictions: Predictions) -> Predictions:
    """All predictions for each image."""
    return Predictions(*(jnp.concatenate(parts, axis=1) for parts in zip(*predictions, strict=True)))


def multi_scale(
    model: FasterRCNN,
    variables: Any,
    pyramid: Sequence[tuple[Maps, jax.Array]],
    proposals: Proposals,
    image_hw: jax.Array,
    canonical: float = 224.0,
) -> Predictions:
    """Multi-scale testing of the second stage: the larger of each feature at two adjacent scales (maxout).

    Args:
        model: the detector.
        variables: its variables.
        pyramid: of two or more sizes of the images, the smallest first: ``features``, and how large these images are
            against those of ``proposals`` and ``image_hw``, (B,). The paper has shorter sides of 200, 400, 600, 800 and
            1000.
        proposals: of one size, which the boxes of the result are in.
        image_hw: (B, 2), of that size.
        canonical: side in pixels. Each region reads the two adjacent scales between which it has the side nearest to
            this, which is what the networks were trained on as ImageNet classifiers (He et al., arXiv 1406.4729).

    Features are merged between the layers that follow pooling and the two sibling layers. All regions are computed at
    all scales and the two of each are chosen afterwards, because how many regions a scale gets is not static.
    """
    scales = jnp.stack([jnp.asarray(scale, jnp.float32) for _, scale in pyramid])  # (S, B)
    # Of the scales i and i + 1, the side of each region at their geometric mean, against the canonical one.
    between = jnp.sqrt(scales[:-1] * scales[1:])[..., None]
    side = jnp.sqrt(jnp.maximum(area(proposals.boxes), 1e-6))
    lower = jnp.argmin(jnp.abs(jnp.log(side * between / canonical)), axis=0)  # (B, R)

    features: jax.Array | None = None
    context: jax.Array | None = None
    for i, (maps, scale) in enumerate(pyramid):
        scaled = proposals.boxes * jnp.asarray(scale, jnp.float32)[:, None, None]
        each: Any = model.apply(variables, maps, scaled, method="box_features")
        used = ((lower == i) | (lower + 1 == i))[..., None]
        each = jnp.where(used, each, -jnp.inf)
        features = each if features is None else jnp.maximum(features, each)
        if model.context:
            hw = jnp.asarray(image_hw, jnp.float32) * jnp.asarray(scale, jnp.float32)[:, None]
            whole: Any = model.apply(variables, maps, hw, method="context_features")
            context = whole if context is None else jnp.maximum(context, whole)
    classified: Any = model.apply(variables, features, context, method="classify")
    return model.predictions(proposals, *classified)


def ensemble_proposals(proposals: Sequence[Proposals]) -> Proposals:
    """The union of the proposals of several detectors, or of several settings of one."""
    return Proposals(*(jnp.concatenate(parts, axis=1) for parts in zip(*proposals, strict=True)))


def ensemble(models: Sequence[FasterRCNN], predictions: Sequence[Predictions]) -> Predictions:
    """The means of the probabilities and of the deltas that several detectors predict for the same proposals.

    The deltas are in the first one's box coding (``BoxSettings.weights``).
    """
    first = jnp.asarray(models[0].box.weights, jnp.float32)
    codings = [first / jnp.asarray(model.box.weights, jnp.float32) for model in models]
    deltas = [each.deltas * coding for each, coding in zip(predictions, codings, strict=True)]
    probabilities = [each.probabilities for each in predictions]
    return predictions[0]._replace(probabilities=_mean(probabilities), deltas=_mean(deltas))


def _mean(arrays: Sequence[jax.Array]) -> jax.Array:
    return sum(arrays[1:], arrays[0]) / len(arrays)
