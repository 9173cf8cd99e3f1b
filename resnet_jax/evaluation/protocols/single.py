"""One view of each image: its central crop, or the image as it is."""

from typing import Any

import jax

from resnet_jax.data.dataset import Dataset
from resnet_jax.data.normalization import Normalization
from resnet_jax.evaluation.protocols.protocol import Pass, Protocol, log_probabilities
from resnet_jax.models import Model


def _passes(dataset: Dataset, split: str, batch_size: int) -> list[list[Pass]]:
    return [[(dataset.single_view(split), batch_size)]]


def _score(
    model: Model, normalization: Normalization, variables: Any, images: jax.Array, sizes: Any, crop_size: int
) -> jax.Array:
    return log_probabilities(model, variables, normalization(images))


SINGLE = Protocol(_passes, _score)
