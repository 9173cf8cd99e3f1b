"""The part of a config that describes photographs with boxes. What reads them is imported when they are opened."""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from resnet_jax.data.crops import Crop
from resnet_jax.data.decode.boxes import Whole
from resnet_jax.parts import Count, NonNegativeInt, Part

if TYPE_CHECKING:
    from resnet_jax.data.detection.dataset import DetectionDataset


class DetectionData(Part):
    """A data set of photographs of any size, with a class and a box for each object.

    Each split is made of one or more splits of the data set, as it calls them: "trainval", or "VOC2007:trainval" in a
    folder below data_dir (or of another data set of TensorFlow Datasets, "voc/2012:train").
    """

    kind: Literal["detection"] = "detection"
    name: str = "voc"
    """"voc" or "imagenet" (XML), "coco" (JSON), "shapes" or "shapes_of_one_class" (drawn), or a detection data set of
    TensorFlow Datasets."""
    train: tuple[str, ...] = ("VOC2007:trainval",)
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ("VOC2007:test",)
    classes: tuple[str, ...] = ()
    """Their names in label order, where the data set does not name them; (): VOC's, or those that are found."""
    short_sides: Annotated[tuple[Count, ...], Field(min_length=1)] = (600,)
    """Pixels to which the shorter side is resized in training; one is drawn for each photograph."""
    max_side: Count = 1000
    """Most pixels of the longer side; where it would be longer, the shorter one is shorter instead."""
    training_crop: Crop | None = None
    """A random part of the photograph that is trained on instead of all of it; short_sides are then not read."""
    crop_size: Count = 224
    """Pixels of the side of training_crop, and of the central crop of evaluations."""
    eval_short_side: Count | None = None
    """Pixels of the shorter side in evaluation, also of what the central crop is cut out of; by default the largest of
    short_sides."""
    canvas_stride: Count = 32
    """Sides of the canvases, which photographs are padded to, are multiples of it."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The probability that a photograph is mirrored in training."""
    max_boxes: Count = 100
    """Objects of a photograph in a batch; the others are left out of training, not of the evaluation."""
    keep_empty: bool = False
    """Whether photographs without objects, or with crowds alone, are trained on as well."""
    max_unreadable: NonNegativeInt = 10
    """Photographs that cannot be decoded before the run stops."""
    threads: NonNegativeInt = 0
    """That decode; 0: one for each core."""
    workers: NonNegativeInt = 0
    """Processes that decode, each with ``threads`` threads; 0: threads of this process."""

    @property
    def evaluation_side(self) -> int:
        """Pixels of the shorter side in evaluation."""
        return self.eval_short_side or max(self.short_sides)

    @property
    def sizes_differ(self) -> bool:
        """Whether training batches have images of several sizes: whole ones may, lying and upright."""
        return self.training_crop is None

    @model_validator(mode="after")
    def _check(self) -> Self:
        largest = max(*self.short_sides, self.evaluation_side)
        if self.max_side < largest:
            raise ValueError(f"max_side {self.max_side} is below a shorter side, {largest}; raise it")
        if not self.validation and not self.test:
            raise ValueError("there is no split to evaluate on; set validation or test")
        if self.training_crop is not None:
            if self.evaluation_side < self.crop_size:
                raise ValueError(
                    f"crop_size {self.crop_size} is above the shorter side in evaluation, {self.evaluation_side}; "
                    f"raise eval_short_side"
                )
            self.training_crop.check(self.crop_size)
        return self

    @property
    def whole(self) -> Whole:
        """What the evaluation sees of a photograph."""
        return Whole(self.evaluation_side, self.max_side)

    def look(self, image_shape: tuple[int, int, int]) -> Whole:
        """The same, whatever image is trained on."""
        return self.whole

    def load(self, data_dir: str | None = None) -> "DetectionDataset":
        """Opens it. Raises UserError where it is not found."""
        from resnet_jax.data.detection.dataset import DetectionDataset
        from resnet_jax.data.sources.detection import open_detection

        splits = self.train or self.validation or self.test
        return DetectionDataset(open_detection(self.name, data_dir, splits, self.classes), self)
