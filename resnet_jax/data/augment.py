"""Device code between the uint8 images and the network: normalisation, random crop and flip."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data.resident import Split
from resnet_jax.errors import UserError


def normalization(config: ConfigDict, train: Split) -> tuple[np.ndarray, np.ndarray]:
    """The (mean, std) that ``normalize`` uses, for images scaled to [0, 1], float32.

    "per_pixel_mean": the mean image (H, W, 3) of the training split in use, and 1 (section 4.2).
    "channel": config.data.mean and config.data.std, (3,) each.
    """
    kind = config.data.normalization
    if kind == "per_pixel_mean":
        mean = train.images.mean(axis=0, dtype=np.float64) / 255
        return mean.astype(np.float32), np.ones((), np.float32)
    if kind == "channel":
        mean, std = (np.array(value, np.float32) for value in (config.data.mean, config.data.std))
        for key, value in (("mean", mean), ("std", std)):
            if value.shape != (3,):
                raise UserError(f"config.data.{key} is {config.data[key]!r}; it must have three values, for R, G and B")
        if not (std > 0).all():
            raise UserError(f"config.data.std is {config.data.std!r}; its values must be above 0")
        return mean, std
    raise UserError(f"config.data.normalization is {kind!r}; it must be 'per_pixel_mean' or 'channel'")


def normalize(images: jax.Array, mean: np.ndarray, std: np.ndarray) -> jax.Array:
    """uint8 images (N, H, W, 3) to float32: scaled to [0, 1], minus ``mean``, over ``std``."""
    return (images.astype(jnp.float32) / 255 - mean) / std


def random_crop(key: jax.Array, images: jax.Array, pad: int) -> jax.Array:
    """Pads each normalised image (H, W, C) of a batch by ``pad`` zeros a side and takes a random H x W crop."""
    if pad == 0:
        return images
    count, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    corners = jax.random.randint(key, (count, 2), 0, 2 * pad + 1)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

    return jax.vmap(crop)(padded, corners)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image (N, H, W, C) left to right with probability 1/2."""
    flip = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1, :], images)


def augment(key: jax.Array, images: jax.Array, pad: int, flip: bool) -> jax.Array:
    """The paper's CIFAR-10 training view of normalised images: padded, cropped and flipped (section 4.2).

    Padding comes after the mean is subtracted, so that the border is the mean and not black.
    """
    crop_key, flip_key = jax.random.split(key)
    images = random_crop(crop_key, images, pad)
    return random_flip(flip_key, images) if flip else images
