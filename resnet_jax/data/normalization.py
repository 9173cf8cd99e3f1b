"""What is subtracted from images, and what they are divided by. Importing it imports no jax."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field

from resnet_jax.data.dataset import Dataset
from resnet_jax.errors import UserError, one_line
from resnet_jax.files import replace_atomically
from resnet_jax.parts import Part

if TYPE_CHECKING:
    import jax

Statistics = tuple[Sequence[float], Sequence[float]]

# Mean and standard deviation of the channels over the training images, in [0, 1]; the figures in common use.
IMAGENET_STATISTICS: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
KNOWN_STATISTICS: dict[str, Statistics] = {
    "digits": ((0.305, 0.305, 0.305), (0.376, 0.376, 0.376)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet2012": IMAGENET_STATISTICS,
}


class Normalization(NamedTuple):
    """For images scaled to [0, 1], float32: ``mean`` (H, W, C) or (C,), and ``std`` (C,)."""

    mean: np.ndarray
    std: np.ndarray

    def __call__(self, images: "jax.Array") -> "jax.Array":
        """uint8 images (N, H, W, C) to float32: scaled to [0, 1], minus ``mean``, over ``std``.

        Raises UserError where the mean is an image and they are of another size.
        """
        if not self._fits(images):
            raise UserError(
                f"the mean image that is subtracted has the shape {self.mean.shape} and the images have "
                f"{images.shape[1:]}; use the config.data.crop_size of the run, or config.normalization.name=channel"
            )
        return self._apply(images, self.mean)

    def whole(self, images: "jax.Array") -> "jax.Array":
        """The same for images of any size, such as whole photographs: a mean image that does not fit is averaged.

        Its mean over all pixels, (C,), is subtracted then.
        """
        return self._apply(images, self.mean if self._fits(images) else self.mean.mean(axis=(0, 1)))

    def _fits(self, images: "jax.Array") -> bool:
        return self.mean.ndim == 1 or self.mean.shape == images.shape[1:]

    def _apply(self, images: "jax.Array", mean: np.ndarray) -> "jax.Array":
        return (images.astype(np.float32) / 255 - mean) / self.std

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


class PerPixelMean(Part):
    """The mean image of the training split in use is subtracted (arXiv 1512.03385, sections 3.4 and 4.2)."""

    name: Literal["per_pixel_mean"] = "per_pixel_mean"

    def make(self, dataset: Dataset) -> Normalization:
        """Computes the mean, which takes long for photographs and is cached then; ``std`` is 1."""
        return Normalization(dataset.mean_image().astype(np.float32), np.ones(dataset.image_shape[-1], np.float32))

    def fixed(self, data_name: str) -> Normalization | None:
        """None: it takes the data."""
        return None


class Channel(Part):
    """One mean and one standard deviation for each channel, for values in [0, 1]; where None, the data set's own."""

    name: Literal["channel"] = "channel"
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None

    def make(self, dataset: Dataset) -> Normalization:
        """Raises UserError unless there are as many values as channels, and every standard deviation is above 0."""
        own: Statistics = ((), ())
        if self.mean is None or self.std is None:
            own = dataset.channel_statistics()
        return self._normalization(own, dataset.image_shape[-1])

    def fixed(self, data_name: str) -> Normalization | None:
        """What ``make`` gives if that can be told from the given values or the data set's name, else None.

        The images have as many channels as ``mean`` has values, or else are RGB.
        """
        given = self.mean is not None and self.std is not None
        if not given and data_name not in KNOWN_STATISTICS:
            return None
        channels = 3 if self.mean is None else len(self.mean)
        return self._normalization(KNOWN_STATISTICS.get(data_name, ((), ())), channels)

    def _normalization(self, own: Statistics, channels: int) -> Normalization:
        mean, std = (
            np.array(own[i] if given is None else given, np.float32) for i, given in enumerate((self.mean, self.std))
        )
        for key, value in (("mean", mean), ("std", std)):
            if value.shape != (channels,):
                raise UserError(
                    f"config.normalization.{key} has {len(value)} values and the images have {channels} channels; give "
                    f"one for each"
                )
        if not (std > 0).all():
            raise UserError("a channel of the training images has one value only; set config.normalization.std")
        return Normalization(mean, std)


# A new normalisation is a class with ``make`` and ``fixed`` and a line here.
AnyNormalization = Annotated[PerPixelMean | Channel, Field(discriminator="name")]
