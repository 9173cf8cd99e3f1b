"""What every data set offers to training and evaluation, whether it is on the devices or streamed. Imports no jax."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import jax

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Share:
    """The part of every batch that this process makes: all of it, or an equal part in a multi-host job."""

    index: int = 0
    count: int = 1


class View(Protocol):
    """What an evaluation sees of some examples of a split; made and understood by one data set."""

    @property
    def count(self) -> int:
        """How many examples."""

    @property
    def canvas(self) -> tuple[int, int]:
        """(height, width) of the images of its batches."""


class Dataset(Protocol):
    """Images of classes in the splits "train" and "validation" or "test", or both."""

    @property
    def name(self) -> str: ...

    @property
    def class_names(self) -> list[str]:
        """In the order of the labels."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of a training image."""

    @property
    def crop_size(self) -> int:
        """Pixels of the side of a training crop and of a central crop; of images of one size, their shorter side."""

    @property
    def num_train(self) -> int:
        """Examples of the training split."""

    @property
    def evaluation_split(self) -> str:
        """What is evaluated while training: "validation" where there is one, else "test"."""

    @property
    def test_split(self) -> str:
        """What a finished network is scored on by default: "test", or "validation" of photographs."""

    def count(self, split: str) -> int:
        """Examples of a split. Raises UserError for one that there is not."""

    def example_name(self, split: str, index: int) -> str:
        """What to call an example in a list for people."""

    def resident(self, split: str) -> Any:
        """Host arrays (a pytree) that stay on every device; None where the batches carry the images."""

    def gather(self, resident: Any, batch: Any) -> dict[str, "jax.Array"]:
        """A whole batch out of ``resident`` on the device and one of the batches below; traced.

        {"image": (B, H, W, C) uint8, "label": (B,) int32, and "index", "size" where the batch has them}. Labels are -1
        where there is no example.
        """

    def training_batches(self, seed: int, batch_size: int, start: int, stop: int, share: Share) -> Iterator[Any]:
        """This process's parts of the batches of steps ``start`` to ``stop`` - 1, a function of (seed, step)."""

    def evaluation_batches(self, split: str, view: Any, batch_size: int, share: Share) -> Iterator[Batch]:
        """This process's parts of the batches that show each example of a view of its own once.

        All are of ``batch_size``, over all processes; "index" is the example's place in the split, and of those that
        fill up the last batch the label is -1 after ``gather``.
        """

    def single_view(self, split: str) -> View:
        """Every example once: its central crop, or the image as it is."""

    def square_view(self, split: str) -> View:
        """The central square, large enough for ten crops. Raises UserError where images have one small size."""

    def whole_views(self, split: str, shorter_side: int | None = None) -> Sequence[View]:
        """Every image whole, with ``shorter_side`` pixels (default as evaluated), one view for each size of canvas.

        Batches have "size", (B, 2), the height and width of each image at the top left of its canvas. Raises UserError
        where images have one small size.
        """

    def mean_image(self) -> np.ndarray:
        """(H, W, C) float64 in [0, 1]: the mean of the training images, as ``single_view`` sees them."""

    def channel_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """The mean and standard deviation of each channel, in [0, 1], to normalise by where none are given."""
