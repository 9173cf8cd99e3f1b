"""Cutout."""

import jax
import jax.numpy as jnp

from resnet_jax.data.normalization import Normalization
from resnet_jax.data.transforms.transform import Batch, Transform
from resnet_jax.parts import NonNegativeInt


class Cutout(Transform):
    """Sets a square of each image to the mean (DeVries and Taylor, arXiv 1708.04552, section 3).

    Its centre is any pixel, so that part of the square may lie outside of the image.
    """

    size: NonNegativeInt = 0
    """Pixels of the side, 16 in the paper on CIFAR-10; 0: off."""

    @property
    def on(self) -> bool:
        return self.size > 0

    def __call__(self, key: jax.Array, batch: Batch, normalization: Normalization, num_classes: int) -> Batch:
        images = batch["image"]
        count, height, width, _ = images.shape
        center = jax.random.randint(key, (count, 2), 0, jnp.array([height, width]))
        top, left = center[:, 0] - self.size // 2, center[:, 1] - self.size // 2
        inside = box_mask(top, left, top + self.size, left + self.size, height, width)
        return batch | {"image": jnp.where(inside, 0, images)}


def box_mask(
    top: jax.Array, left: jax.Array, bottom: jax.Array, right: jax.Array, height: int, width: int
) -> jax.Array:
    """(B, height, width, 1) bool: the pixels from (top, left) to before (bottom, right), each (B,)."""
    y, x = jnp.arange(height), jnp.arange(width)
    rows = (y >= top[:, None]) & (y < bottom[:, None])
    columns = (x >= left[:, None]) & (x < right[:, None])
    return (rows[:, :, None] & columns[:, None, :])[..., None]
