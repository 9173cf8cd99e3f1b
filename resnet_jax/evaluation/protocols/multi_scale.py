"""The fully-convolutional testing of the paper's section 3.4: photographs, whole and mirrored, at five scales.

The paper averages the scores over the positions of a map. The network that its authors released pools the last map by
7x7 windows of stride 1 before the classifier, and averages over those, so positions near the edge count less: at a
20x20 map a corner has 1/49 of the weight of the centre. ``multi_scale`` takes the plain mean, which is what the paper
says and what the trained network's own pooling is on a map of any size; ``multi_scale_windows`` does as was released.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from resnet_jax.data.dataset import Dataset
from resnet_jax.data.normalization import Normalization
from resnet_jax.evaluation.dense import check_dense, dense_logits
from resnet_jax.evaluation.protocols.protocol import Pass, Protocol, mean_over_views
from resnet_jax.models import Model

SCALES = (224, 256, 384, 480, 640)  # Of the shorter side.
WINDOW = 7  # Positions of the last map that a crop of 224 pixels has.


def _passes(dataset: Dataset, split: str, batch_size: int) -> list[list[Pass]]:
    """For each scale the photographs by canvas, in batches of about as many pixels as a batch of crops has."""
    pixels = batch_size * dataset.crop_size**2

    def of_scale(scale: int) -> list[Pass]:
        views = dataset.whole_views(split, scale)
        return [(view, _power_of_two(pixels // (view.canvas[0] * view.canvas[1]))) for view in views]

    return [of_scale(scale) for scale in SCALES]


def _power_of_two(limit: int) -> int:
    """The largest that is at most ``limit``, which divides well among devices and threads; at least 1."""
    return 1 << max(0, limit.bit_length() - 1)


def _score(
    window: int | None,
    model: Model,
    normalization: Normalization,
    variables: Any,
    images: jax.Array,
    sizes: Any,
    crop_size: int,
) -> jax.Array:
    """Of photographs at the top left of a canvas (N, H, W, C), and of their mirror images."""

    def mirror(image: jax.Array, width: jax.Array) -> jax.Array:
        return jnp.roll(image[:, ::-1], width, axis=1)  # The mirrored canvas has its photograph at the right end.

    def score(view: jax.Array) -> jax.Array:
        logits = dense_logits(model, variables, normalization.whole(view), jnp.repeat(sizes, 2, axis=0), window)
        return jax.nn.log_softmax(logits)

    return mean_over_views(score, [images, jax.vmap(mirror)(images, sizes[:, 1])])


MULTI_SCALE = Protocol(_passes, partial(_score, None), check_dense)
MULTI_SCALE_WINDOWS = Protocol(_passes, partial(_score, WINDOW), check_dense)
