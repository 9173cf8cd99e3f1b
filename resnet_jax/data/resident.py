"""Data sets that fit on the device: uint8 images stay there, and a step gathers its batch by index."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from resnet_jax.data.dataset import Batch, Share, View
from resnet_jax.data.decode.boxes import CentralCrop
from resnet_jax.data.normalization import KNOWN_STATISTICS, Statistics
from resnet_jax.data.order import example_indices
from resnet_jax.data.sources import load_images
from resnet_jax.data.sources.protocol import Split
from resnet_jax.errors import UserError
from resnet_jax.parts import Count, NonNegativeInt, Part

if TYPE_CHECKING:
    import jax


class Resident(Part):
    """A data set of small images of one size."""

    kind: Literal["resident"] = "resident"
    name: str = "cifar10"
    """"digits", or any classification data set of TensorFlow Datasets whose images have one size."""
    holdout: NonNegativeInt = 0
    """Training examples held out for validation; the evaluations in training then use those."""
    repeats: Count = 1
    """Repeated augmentation: how often a batch has each of its examples, and a pass, 1 / repeats of the data set."""

    @property
    def sizes_differ(self) -> bool:
        """Whether training batches have images of several sizes: never."""
        return False

    def look(self, image_shape: tuple[int, int, int]) -> CentralCrop:
        """What a network of images of (H, W, C) sees of a photograph: the central square.

        Raises UserError where the images are not square.
        """
        height, width, _ = image_shape
        if height != width:
            raise UserError(f"the network's images are {height} x {width}; photographs are only predicted as squares")
        return CentralCrop(height, height)

    def load(self, data_dir: str | None = None) -> "ResidentDataset":
        """Loads it into host memory. Raises UserError where it is not found, or of another kind."""
        images = load_images(self.name, data_dir)
        splits = _checked(self.name, images.splits, images.class_names)
        splits = _hold_out(self.name, splits, self.holdout) if self.holdout else splits
        return ResidentDataset(self.name, splits, images.class_names, self.repeats)


@dataclass(frozen=True)
class WholeSplit:
    """All examples of a split, as they are."""

    count: int
    canvas: tuple[int, int]


@dataclass(frozen=True, eq=False)
class ResidentDataset:
    """Splits in host memory; see ``dataset.Dataset``. The images have one shape and any number of channels.

    Raises UserError unless there is "train", and "validation" or "test".
    """

    name: str
    splits: Mapping[str, Split]
    class_names: list[str]
    repeats: int = 1  # Of each example in a training batch.

    def __post_init__(self) -> None:
        if "train" not in self.splits or len(self.splits) < 2:
            raise UserError(
                f"data set {self.name!r} has the splits {', '.join(self.splits)}; it must have train, and test or "
                f"validation; config.data.holdout makes one of a part of train"
            )
        for name, split in self.splits.items():
            if split.images.shape[1:] != self.image_shape:
                raise UserError(
                    f"images of {self.name} {name} have the shape {split.images.shape[1:]} and those of train "
                    f"{self.image_shape}; make them equal"
                )

    @classmethod
    def from_arrays(
        cls,
        train_images: np.ndarray,
        train_labels: np.ndarray,
        test_images: np.ndarray,
        test_labels: np.ndarray,
        class_names: Sequence[str] | None = None,
        name: str = "arrays",
    ) -> "ResidentDataset":
        """A data set of arrays: images (N, H, W) or (N, H, W, C) uint8 and labels (N,), integers from 0.

        Classes without names are called by their numbers. Raises UserError for other arrays.
        """
        given = {"train": Split(train_images, train_labels), "test": Split(test_images, test_labels)}
        splits = _checked(name, given, class_names or None)
        classes = max(int(split.labels.max()) for split in splits.values()) + 1
        return cls(name, splits, list(class_names or map(str, range(classes))))

    def hold_out(self, count: int) -> "ResidentDataset":
        """The same with ``count`` training examples as "validation": a fixed random draw, the same for every seed.

        The paper holds out 5,000 of CIFAR-10's 50,000 (arXiv 1512.03385, section 4.2). Raises UserError for more than
        there are, or where there is a validation split already.
        """
        return replace(self, splits=_hold_out(self.name, self.splits, count))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.splits["train"].images.shape[1:]

    @property
    def crop_size(self) -> int:
        return min(self.image_shape[:2])

    @property
    def num_train(self) -> int:
        return len(self.splits["train"].labels)

    @property
    def evaluation_split(self) -> str:
        return "validation" if "validation" in self.splits else "test"

    @property
    def test_split(self) -> str:
        return "test" if "test" in self.splits else "validation"

    def count(self, split: str) -> int:
        return len(self.resident(split).labels)

    def example_name(self, split: str, index: int) -> str:
        return f"{split}[{index}]"

    def resident(self, split: str) -> Split:
        """The images and labels. Raises UserError for a split that does not exist."""
        if split not in self.splits:
            hint = ", or set config.data.holdout" if split == "validation" else ""
            raise UserError(f"{self.name} has no split {split!r}; use {' or '.join(self.splits)}{hint}")
        return self.splits[split]

    def gather(self, resident: Split, batch: dict[str, "jax.Array"]) -> dict[str, "jax.Array"]:
        import jax.numpy as jnp  # Not where only the config is read, nor in processes that decode.

        indices = batch["index"]
        labels = jnp.where(indices < 0, -1, resident.labels[indices])
        return batch | {"image": resident.images[indices], "label": labels}

    def training_batches(self, seed: int, batch_size: int, start: int, stop: int, share: Share) -> Iterator[Batch]:
        for step in range(start, stop):
            places = np.arange(step * batch_size, (step + 1) * batch_size)
            indices = example_indices(seed, places, self.num_train, self.repeats, batch_size)
            yield {"index": indices[_part(batch_size, share)]}

    def evaluation_batches(self, split: str, view: View, batch_size: int, share: Share) -> Iterator[Batch]:
        padded = np.arange(-(-view.count // batch_size) * batch_size, dtype=np.int32)
        padded[view.count :] = -1
        for indices in padded.reshape(-1, batch_size):
            yield {"index": indices[_part(batch_size, share)]}

    def single_view(self, split: str) -> WholeSplit:
        return WholeSplit(self.count(split), self.image_shape[:2])

    def square_view(self, split: str) -> View:
        raise self._too_small()

    def whole_views(self, split: str, shorter_side: int | None = None) -> list[View]:
        raise self._too_small()

    def _too_small(self) -> UserError:
        return UserError(f"ten_crop and multi_scale are for photographs; score {self.name} with --protocol=single")

    def mean_image(self) -> np.ndarray:
        return self.splits["train"].images.mean(axis=0, dtype=np.float64) / 255

    def channel_statistics(self) -> Statistics:
        """Those in common use where the data set is known by name, else those of the training images."""
        channels = self.image_shape[-1]
        known = KNOWN_STATISTICS.get(self.name)
        if known and len(known[0]) == channels:
            return known
        values = np.arange(256) / 255
        means, stds = [], []
        for channel in range(channels):
            counts = np.zeros(256, np.int64)  # Exact, and without a copy of all images in floats.
            for images in np.array_split(self.splits["train"].images, -(-self.num_train // 1000)):
                counts += np.bincount(images[..., channel].ravel(), minlength=256)
            means.append(float(np.average(values, weights=counts)))
            stds.append(float(np.average((values - means[-1]) ** 2, weights=counts) ** 0.5))
        return means, stds


def _hold_out(name: str, splits: Mapping[str, Split], count: int) -> dict[str, Split]:
    """See ``ResidentDataset.hold_out``; "train" may be the only split."""
    if "validation" in splits:
        raise UserError(f"config.data.holdout is {count}, but {name} has a validation split of its own; use 0")
    train = splits["train"]
    total = len(train.labels)
    if not 0 < count < total:
        raise UserError(f"config.data.holdout is {count}; it must be from 0 to {total - 1}")
    order = np.random.default_rng(0).permutation(total)
    kept, held = np.sort(order[count:]), np.sort(order[:count])
    return {
        **splits,
        "train": Split(train.images[kept], train.labels[kept]),
        "validation": Split(train.images[held], train.labels[held]),
    }


def _checked(name: str, splits: Mapping[str, Split], class_names: Sequence[str] | None) -> dict[str, Split]:
    """What a source or a caller gives, as (N, H, W, C) uint8 and (N,) int32. Raises UserError where it is neither.

    A test split beside a validation split may be without labels: -1.
    """
    unlabelled = {"test"} if "validation" in splits else set()
    return {
        split: _checked_split(f"{name} {split}", *arrays, class_names, least=-1 if split in unlabelled else 0)
        for split, arrays in splits.items()
    }


def _checked_split(
    name: str, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str] | None, least: int
) -> Split:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UserError(
            f"images of {name} are {images.dtype} of shape {images.shape}; they must be uint8 of shape (N, H, W) or "
            f"(N, H, W, C)"
        )
    if not len(images):
        raise UserError(f"there are no images of {name}; give at least one")
    if labels.shape != (len(images),):
        raise UserError(f"labels of {name} have the shape {labels.shape}; they must be ({len(images)},), one an image")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < least:
        raise UserError(f"the labels of {name} must be integers from 0, one for each image")
    if class_names is not None and labels.max() >= len(class_names):
        raise UserError(f"label {labels.max()} of {name} has no class name; there are {len(class_names)}")
    return Split(images[..., None] if images.ndim == 3 else images, labels.astype(np.int32))


def _part(batch_size: int, share: Share) -> slice:
    """The part of a global batch that a process puts on its devices."""
    size = batch_size // share.count
    return slice(share.index * size, (share.index + 1) * size)
