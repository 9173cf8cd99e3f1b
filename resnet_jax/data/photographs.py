"""The part of a config that describes photographs. What reads them is imported when they are opened."""

from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator

from resnet_jax.data.crops import Crop, Progressive, ScaleJitter
from resnet_jax.data.decode.boxes import CentralCrop, Interpolation
from resnet_jax.parts import Count, Fraction, NonNegativeInt, Part

if TYPE_CHECKING:
    from resnet_jax.data.streamed import StreamedDataset


class Photographs(Part):
    """A data set of images of any size, which are decoded and cropped while the devices compute."""

    kind: Literal["photographs"] = "photographs"
    name: str = "imagenet2012"
    """"folder" (of class folders), "csv" or "jsonl" (tables of paths and labels), "huggingface" (saved to disk),
    "packed" (by ``data.pack``), or any TensorFlow Datasets name with classes."""
    validation_fraction: Fraction = 0.1
    """Of each class of the training photographs, held out where there is no validation and no test split; 0: not."""
    crop: Crop = ScaleJitter()
    crop_size: Count = 224
    """Pixels of the side of a crop, in training and in evaluation."""
    train_crop_size: Count | None = None
    """Those of a training crop, where they differ (Touvron et al., arXiv 1906.06423)."""
    progressive: Progressive = Progressive()
    repeats: Count = 1
    """Repeated augmentation: how often a batch has each of its examples, and a pass, 1 / repeats of the data set."""
    eval_shorter_side: Count = 256
    """Pixels to which the shorter side is resized where one central crop or ten crops are cut out."""
    interpolation: Interpolation = "area"
    """How crops are resized, in training and in evaluation; see ``decode.images.crop_and_resize``. "area" is the
    fastest. "bilinear" and "bicubic" are what torchvision's and timm's weights were evaluated with; in training JPEGs
    that are large enough are still decoded at a half, a quarter or an eighth of their size first."""
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
        if self.progressive.start_size and self.progressive.start_size > self.largest_crop:
            raise ValueError(
                f"progressive.start_size {self.progressive.start_size} is above the {self.largest_crop} of the "
                f"training crops; lower it"
            )
        self.crop.check(self.largest_crop)
        return self

    @property
    def largest_crop(self) -> int:
        """Pixels of the side of a training crop, at the end of ``progressive``."""
        return self.train_crop_size or self.crop_size

    @property
    def sizes_differ(self) -> bool:
        """Whether training batches have images of several sizes."""
        return self.progressive.start_size is not None

    def look(self, image_shape: tuple[int, int, int]) -> CentralCrop:
        """What the evaluation with one crop sees of a photograph."""
        return CentralCrop(self.eval_shorter_side, self.crop_size, self.interpolation)

    def load(self, data_dir: str | None = None) -> "StreamedDataset":
        """Opens it. Raises UserError where it is not found, or of another kind."""
        from resnet_jax.data.sources import open_photographs
        from resnet_jax.data.sources.held_out import with_validation
        from resnet_jax.data.streamed import StreamedDataset

        opened = with_validation(open_photographs(self.name, data_dir), self.validation_fraction)
        return StreamedDataset(opened, self)
