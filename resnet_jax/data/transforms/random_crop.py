"""Random shifts of small images."""

import jax
import jax.numpy as jnp

from resnet_jax.data.normalization import Normalization
from resnet_jax.data.transforms.transform import Batch, Transform
from resnet_jax.parts import NonNegativeInt


class RandomCrop(Transform):
    """Pads each image by zeros and takes a random crop of its own size (arXiv 1512.03385, section 4.2: 4 pixels).

    It follows the normalisation, so that the border is the mean and not black.
    """

    pad: NonNegativeInt = 0
    """Pixels on each side; 0: off."""

    @property
    def on(self) -> bool:
        return self.pad > 0

    def __call__(self, key: jax.Array, batch: Batch, normalization: Normalization, num_classes: int) -> Batch:
        images, pad = batch["image"], self.pad
        count, height, width, channels = images.shape
        padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        corners = jax.random.randint(key, (count, 2), 0, 2 * pad + 1)

        def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

        return batch | {"image": jax.vmap(crop)(padded, corners)}
