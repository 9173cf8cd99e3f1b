"""What every transform of a training batch is."""

from typing import ClassVar

import jax

from resnet_jax.data.normalization import Normalization
from resnet_jax.errors import UserError
from resnet_jax.parts import Part

Batch = dict[str, jax.Array]


class Transform(Part):
    """A random change of training batches, traced into the step. Its defaults leave it off.

    A batch is {"image": (B, H, W, C), "label": (B,) int32} and, once a transform mixes examples, "target":
    (B, num_classes) float32, the probabilities of the classes, which the loss then takes instead of the labels.
    """

    before_normalization: ClassVar[bool] = False
    """Whether it runs on uint8 images, and not on normalised float32 ones."""

    @property
    def on(self) -> bool:
        """Whether it does anything."""
        raise NotImplementedError

    def __call__(self, key: jax.Array, batch: Batch, normalization: Normalization, num_classes: int) -> Batch:
        """The changed batch, of the same shapes; ``key`` is this transform's own."""
        raise NotImplementedError


def check_rgb(name: str, images: jax.Array) -> None:
    """Raises UserError unless the images (B, H, W, C) that the transform ``name`` is given are RGB."""
    if images.shape[-1] != 3:
        raise UserError(
            f"config.transforms.{name} is for RGB, and the images have {images.shape[-1]} channels; leave it off"
        )
