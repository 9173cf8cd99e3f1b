"""How a photograph becomes class probabilities: one centre crop, ten crops, or whole at several scales."""

import math
from collections.abc import Callable
from functools import partial
from itertools import chain, count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data.dataset import Data
from resnet_jax.data.normalization import Normalization
from resnet_jax.data.packed import PackedSource
from resnet_jax.data.streaming import (
    Loading,
    Photographs,
    View,
    central_view,
    photograph_sizes,
    resized_size,
    square_view,
    whole_view,
)
from resnet_jax.errors import UserError
from resnet_jax.evaluation.dense import dense_logits
from resnet_jax.models import Model

NAMES = ("single", "ten_crop", "multi_scale")
SCALES = (224, 256, 384, 480, 640)  # Of the shorter side (section 3.4).
# Longer over shorter sides of the canvases that photographs are laid on, which go on with doubles of the last. Each
# scale compiles at most once for every canvas that occurs, upright and lying; the usual 4:3 and 3:2 fit closely.
ASPECTS = (1.0, 1.36, 1.52, 2.0)
_STRIDE = 32

Scorer = Callable[[Model, Normalization, Any, jax.Array, Any], jax.Array]


def scorer(protocol: str, config: ConfigDict) -> Scorer:
    """``(model, normalization, variables, images, sizes) -> log-probabilities`` (N, num_classes) of a batch.

    The views of an image are averaged as probabilities, and so are the scales of "multi_scale", each of which is
    scored by itself.
    """
    if protocol == "single":
        return score_single
    if protocol == "ten_crop":
        return partial(score_ten_crop, crop=config.data.crop_size)
    return score_dense


def score_single(
    model: Model, normalization: Normalization, variables: Any, images: jax.Array, sizes: Any = None
) -> jax.Array:
    """Of uint8 images (N, H, W, 3) as they are. ``sizes`` is not read."""
    return jax.nn.log_softmax(jnp.asarray(model.apply(variables, normalization(images), train=False)))


def score_ten_crop(
    model: Model, normalization: Normalization, variables: Any, images: jax.Array, sizes: Any, crop: int
) -> jax.Array:
    """Of the four corners and the centre of uint8 images (N, S, S, 3), crop x crop each, and their mirror images.

    The standard 10-crop testing of AlexNet (section 4 there). ``sizes`` is not read.
    """
    far = images.shape[1] - crop
    middle = far // 2
    corners = [(0, 0), (0, far), (far, 0), (far, far), (middle, middle)]
    crops = [images[:, top : top + crop, left : left + crop] for top, left in corners]
    views = [view for image in crops for view in (image, image[:, :, ::-1])]
    return _mean_over_views(partial(score_single, model, normalization, variables), views)


def score_dense(
    model: Model, normalization: Normalization, variables: Any, images: jax.Array, sizes: jax.Array
) -> jax.Array:
    """Of photographs of ``sizes`` (N, 2) on a canvas (N, H, W, 3) uint8, and of their mirror images, densely."""

    def mirror(image: jax.Array, width: jax.Array) -> jax.Array:
        return jnp.roll(image[:, ::-1], width, axis=1)  # The mirrored canvas has its photograph at the right end.

    def score(view: jax.Array) -> jax.Array:
        logits = dense_logits(model, variables, normalization(view), jnp.repeat(sizes, 2, axis=0))
        return jax.nn.log_softmax(logits)

    return _mean_over_views(score, [images, jax.vmap(mirror)(images, sizes[:, 1])])


def _mean_over_views(score: Callable[[jax.Array], jax.Array], views: list[jax.Array]) -> jax.Array:
    """The logarithm of the mean probability over views (N, H, W, 3) of the same images, scored in one batch."""
    together = jnp.stack(views, axis=1)  # The views of an image stay on its device.
    log_probs = score(together.reshape(-1, *views[0].shape[1:]))
    return log_mean(log_probs.reshape(-1, len(views), log_probs.shape[-1]).swapaxes(0, 1))


def log_mean(log_probs: jax.Array) -> jax.Array:
    """The logarithm of the mean probability over the leading axis."""
    return jax.nn.logsumexp(log_probs, axis=0) - math.log(len(log_probs))


def views(protocol: str, config: ConfigDict, data: Data, split: str) -> list[list[tuple[View | None, int]]]:
    """What to score: one entry for each scale, and in each the views, with their batch sizes, that make up the split.

    Raises UserError for an unknown protocol, or one that needs photographs where the images have one small size.
    """
    if protocol not in NAMES:
        raise UserError(f"there is no protocol {protocol!r}; use {', '.join(NAMES)}")
    batch_size = config.eval_batch_size
    if not isinstance(data, Photographs):
        if protocol != "single":
            raise UserError(f"protocol {protocol} is for photographs; score {config.data.name} with --protocol=single")
        return [[(None, batch_size)]]
    crop, source = config.data.crop_size, data.split(split)
    everything = np.arange(len(source))
    if protocol == "single":
        return [[(central_view(everything, config.data.eval_shorter_side, crop), batch_size)]]
    if protocol == "ten_crop":
        return [[(square_view(everything, config.data.eval_shorter_side), max(1, batch_size // 10))]]
    if isinstance(source, PackedSource) and source.shorter_side < max(SCALES):
        raise UserError(
            f"the pack's photographs have shorter sides of at most {source.shorter_side} pixels, and multi_scale needs "
            f"{max(SCALES)}; score the photographs themselves, or pack them with --shorter_side={max(SCALES)}"
        )
    sizes = photograph_sizes(source, Loading.in_threads(config), config.data.max_unreadable)
    return [_dense_views(sizes, scale, batch_size * crop**2) for scale in SCALES]


def _dense_views(sizes: np.ndarray, scale: int, pixels: int) -> list[tuple[View | None, int]]:
    """The photographs by canvas, in batches of about ``pixels`` pixels."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, (height, width) in enumerate(sizes):
        if height and width:
            groups.setdefault(canvas_for(int(height), int(width), scale), []).append(index)
    return [
        (whole_view(np.array(indices), scale, canvas), _power_of_two(pixels // (canvas[0] * canvas[1])))
        for canvas, indices in sorted(groups.items())
    ]


def _power_of_two(limit: int) -> int:
    """The largest that is at most ``limit``, which divides well among devices and threads; at least 1."""
    return 1 << max(0, limit.bit_length() - 1)


def canvas_for(height: int, width: int, scale: int) -> tuple[int, int]:
    """The smallest canvas that holds a photograph of (height, width) once its shorter side is ``scale``."""
    resized = resized_size(height, width, scale)
    short = -(-scale // _STRIDE) * _STRIDE
    aspects = chain(ASPECTS, (ASPECTS[-1] * 2**power for power in count(1)))
    longs = (-(-math.ceil(scale * aspect) // _STRIDE) * _STRIDE for aspect in aspects)
    long = next(length for length in longs if length >= max(resized))
    return (long, short) if resized[0] > resized[1] else (short, long)
