"""The part of a config that describes photographs. What reads them is imported when they are opened."""

from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator

from resnet_jax.data.crops import Crop, ScaleJitter
from resnet_jax.parts import Count, NonNegativeInt, Part

if TYPE_CHECKING:
    from resnet_jax.data.streamed import StreamedDataset


class Photographs(Part):
    """A data set of images of any size, which are decoded and cropped while the devices compute."""

    kind: Literal["photographs"] = "photographs"
    name: str = "imagenet2012"
    """"folder" (of class folders), "packed" (by ``data.pack``), or any TensorFlow Datasets name with classes."""
    crop: Crop = ScaleJitter()
    crop_size: Count = 224
    """Pixels of the side of a crop."""
    eval_shorter_side: Count = 256
    """Pixels to which the shorter side is resized where one central crop or ten crops are cut out."""
    max_unreadable: NonNegativeInt = 10
    """Photographs that cannot be decoded before the run stops."""
    threads: NonNegativeInt = 0
    """That decode; 0: one for each core."""
    workers: NonNegativeInt = 0
    """Processes that decode, each with ``threads`` threads; 0: threads of this process."""

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.eval_shorter_side < self.crop_size:
            raise ValueError(
                f"eval_shorter_side {self.eval_shorter_side} is below crop_size {self.crop_size}; raise it"
            )
        self.crop.check(self.crop_size)
        return self

    def view_size(self, image_shape: tuple[int, int, int]) -> tuple[int, int]:
        """(shorter side that a photograph is resized to, side of its central crop) in pixels, as in evaluation."""
        return self.eval_shorter_side, self.crop_size

    def load(self, data_dir: str | None = None) -> "StreamedDataset":
        """Opens it. Raises UserError where it is not found, or of another kind."""
        from resnet_jax.data.sources import open_photographs
        from resnet_jax.data.streamed import StreamedDataset

        return StreamedDataset(open_photographs(self.name, data_dir), self)
