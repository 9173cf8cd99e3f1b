"""The standard 10-crop testing of the paper's section 3.4, which is that of AlexNet (section 4.1 there).

AlexNet's crops are from the central square of a photograph, as those of ``ten_crop`` are. The notes to the authors'
released networks can also be read as the corners of the whole photograph: ``ten_crop_whole``.
"""

from typing import Any

import jax
import jax.numpy as jnp

from resnet_jax.data.dataset import Dataset
from resnet_jax.data.normalization import Normalization
from resnet_jax.evaluation.protocols.protocol import Pass, Protocol, log_probabilities, mean_over_views
from resnet_jax.models import Model

_VIEWS = 10


def _passes(dataset: Dataset, split: str, batch_size: int) -> list[list[Pass]]:
    # On the device each photograph is ten images.
    return [[(dataset.square_view(split), max(1, batch_size // _VIEWS))]]


def _score(
    model: Model, normalization: Normalization, variables: Any, images: jax.Array, sizes: Any, crop_size: int
) -> jax.Array:
    """Of the four corners and the centre of images (N, S, S, C), and the mirror images of all five."""
    far = images.shape[1] - crop_size
    middle = far // 2
    corners = [(0, 0), (0, far), (far, 0), (far, far), (middle, middle)]
    crops = [images[:, top : top + crop_size, left : left + crop_size] for top, left in corners]
    views = [view for image in crops for view in (image, image[:, :, ::-1])]
    return mean_over_views(lambda view: log_probabilities(model, variables, normalization(view)), views)


def _passes_whole(dataset: Dataset, split: str, batch_size: int) -> list[list[Pass]]:
    return [[(view, max(1, batch_size // _VIEWS)) for view in dataset.whole_views(split)]]


def _score_whole(
    model: Model, normalization: Normalization, variables: Any, images: jax.Array, sizes: Any, crop_size: int
) -> jax.Array:
    """Of the four corners and the centre of photographs at the top left of a canvas, and the mirror images of all."""
    far = sizes - crop_size
    corners = [far * jnp.array(place) for place in ((0, 0), (0, 1), (1, 0), (1, 1))]

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (crop_size, crop_size, image.shape[-1]))

    crops = [jax.vmap(crop)(images, corner) for corner in [*corners, far // 2]]
    views = [view for image in crops for view in (image, image[:, :, ::-1])]
    return mean_over_views(lambda view: log_probabilities(model, variables, normalization(view)), views)


TEN_CROP = Protocol(_passes, _score)
TEN_CROP_WHOLE = Protocol(_passes_whole, _score_whole)
