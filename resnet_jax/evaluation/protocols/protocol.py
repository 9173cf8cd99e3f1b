"""What every protocol is, and means over the views of an image."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from resnet_jax.data.dataset import Dataset, View
from resnet_jax.data.normalization import Normalization
from resnet_jax.models import Model

Pass = tuple[View, int]
"""Examples of a split, and how many of them make a batch."""


def _for_every_network(model: Model) -> None:
    """Raises nothing."""


class Protocol(NamedTuple):
    """How an image becomes class probabilities. A new protocol is a file here and a line in ``PROTOCOLS``.

    passes: ``(dataset, split, batch_size)`` to what is scored: for each scale the passes that show every example of the
        split once. The probabilities of all scales are averaged. Raises UserError for a data set that it is not for.
    score: ``(model, normalization, variables, images, sizes, crop_size)`` to log-probabilities (N, num_classes) float32
        of uint8 images (N, H, W, C) as the passes show them; traced. ``sizes`` (N, 2) are the heights and widths at the
        top left of the canvas where the batches have them, else None. ``crop_size`` is the data set's.
    check: raises UserError for a network that it is not for.
    """

    passes: Callable[[Dataset, str, int], Sequence[Sequence[Pass]]]
    score: Callable[[Model, Normalization, Any, jax.Array, jax.Array | None, int], jax.Array]
    check: Callable[[Model], None] = _for_every_network


def log_probabilities(model: Model, variables: Any, images: jax.Array) -> jax.Array:
    """Log-probabilities (N, num_classes) of normalised images (N, H, W, C) by the network in evaluation."""
    return jax.nn.log_softmax(jnp.asarray(model.apply(variables, images, train=False)))


def mean_over_views(score: Callable[[jax.Array], jax.Array], views: Sequence[jax.Array]) -> jax.Array:
    """The logarithm of the mean probability over views of the same images, each (N, H, W, C), scored in one batch.

    ``score`` maps images (N * views, H, W, C), the views of an image next to each other, to log-probabilities.
    """
    together = jnp.stack(views, axis=1)  # The views of an image stay on its device.
    log_probs = score(together.reshape(-1, *views[0].shape[1:]))
    return log_mean(log_probs.reshape(-1, len(views), log_probs.shape[-1]).swapaxes(0, 1))


def log_mean(log_probs: jax.Array) -> jax.Array:
    """The logarithm of the mean probability over the leading axis."""
    return jax.nn.logsumexp(log_probs, axis=0) - math.log(len(log_probs))
