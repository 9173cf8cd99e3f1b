"""What is subtracted from images, and what they are divided by."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data.cache import cached_arrays
from resnet_jax.data.dataset import Data
from resnet_jax.data.streaming import Loading, Photographs, mean_image
from resnet_jax.errors import UserError, one_line
from resnet_jax.files import replace_atomically

# Mean and standard deviation of R, G and B over the training images, the figures in common use.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CHANNELS = {
    "digits": ((0.305, 0.305, 0.305), (0.376, 0.376, 0.376)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet2012": _IMAGENET,
    "folder": _IMAGENET,
    "packed": _IMAGENET,
}


class Normalization(NamedTuple):
    """For images scaled to [0, 1], float32: ``mean`` (H, W, 3) or (3,), and ``std`` (3,)."""

    mean: np.ndarray
    std: np.ndarray

    def __call__(self, images: jax.Array) -> jax.Array:
        """uint8 images (N, H, W, 3) to float32: scaled to [0, 1], minus ``mean``, over ``std``.

        A mean image fits images of its own size; others get its mean over all pixels.
        """
        mean = self.mean
        if mean.ndim == 3 and mean.shape != images.shape[1:]:
            mean = mean.mean(axis=(0, 1))
        return (images.astype(jnp.float32) / 255 - mean) / self.std

    def save(self, path: Path) -> None:
        """Writes an .npz file."""
        with replace_atomically(path) as file:
            np.savez(file, mean=self.mean, std=self.std)

    @classmethod
    def load(cls, path: Path) -> "Normalization":
        """Reads what ``save`` wrote. Raises UserError if it cannot be read."""
        try:
            with path.open("rb") as file, np.load(file) as saved:
                return cls(saved["mean"], saved["std"])
        except Exception as error:  # zipfile, zlib and numpy each have their own for a damaged file.
            raise UserError(f"{path} is missing or damaged ({one_line(error)}); restore it") from None


def normalization(config: ConfigDict, data: Data) -> Normalization:
    """The normalisation that config.data.normalization names.

    "per_pixel_mean": the mean image of the training split in use (sections 3.4 and 4.2), and 1. Of photographs it is
    that of their central crops; it is computed once and kept in the cache.
    "channel": config.data.mean and config.data.std.
    """
    kind = config.data.normalization
    if kind == "per_pixel_mean":
        if isinstance(data, Photographs):
            shorter_side, crop, limit = config.data.eval_shorter_side, config.data.crop_size, config.data.max_unreadable
            (mean,) = cached_arrays(
                f"{config.data.name}-mean-{shorter_side}-{crop}",
                data.find_train_files(),
                lambda: (mean_image(data.train, shorter_side, crop, Loading.in_threads(config), limit),),
                keys=("mean",),
            )
        else:
            mean = data.train.images.mean(axis=0, dtype=np.float64) / 255
        return Normalization(mean.astype(np.float32), np.ones(3, np.float32))
    if kind == "channel":
        return channel_normalization(config)
    raise UserError(f"config.data.normalization is {kind!r}; it must be 'per_pixel_mean' or 'channel'")


def channel_normalization(config: ConfigDict) -> Normalization:
    """config.data.mean and config.data.std, or those of the data set.

    Raises UserError unless they are three values each, and std above 0.
    """
    own = _CHANNELS[config.data.name]
    mean, std = (
        np.array(own[i] if given is None else given, np.float32)
        for i, given in enumerate((config.data.mean, config.data.std))
    )
    for key, value in (("mean", mean), ("std", std)):
        if value.shape != (3,):
            raise UserError(f"config.data.{key} is {config.data[key]!r}; it must have three values, for R, G and B")
    if not (std > 0).all():
        raise UserError(f"config.data.std is {config.data.std!r}; its values must be above 0")
    return Normalization(mean, std)
