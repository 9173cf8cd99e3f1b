"""Data sets that fit on the device: uint8 images stay there, and a step gathers its batch by index."""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from resnet_jax.data import digits, tfds_source
from resnet_jax.data.cache import cached_arrays
from resnet_jax.errors import UserError

NAMES = ("digits", "cifar10", "cifar100")


@flax.struct.dataclass
class Split:
    """Images (N, H, W, 3) uint8 and labels (N,) int32, on the host or on the device."""

    images: Any
    labels: Any

    def __len__(self) -> int:
        return self.labels.shape[0]


class Dataset(NamedTuple):
    """The splits of a data set; ``validation`` is None when nothing is held out of the training set."""

    train: Split
    validation: Split | None
    test: Split
    class_names: list[str]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, 3)."""
        return self.train.images.shape[1:]

    def split(self, name: str) -> Split:
        """The split called "train", "validation" or "test". Raises UserError if there is none."""
        chosen = {"train": self.train, "validation": self.validation, "test": self.test}.get(name)
        if chosen is None:
            raise UserError(f"there is no split {name!r}: use train or test, or set config.data.holdout for validation")
        return chosen


def load_dataset(config: ConfigDict) -> Dataset:
    """Loads config.data.name, one of ``NAMES``, into host memory.

    config.data.holdout training examples are held out for validation. They are a fixed random draw, the same for every
    seed. The paper holds out 5,000 of CIFAR-10's 50,000 (section 4.2).
    """
    name, holdout = config.data.name, config.data.holdout
    if name == "digits":
        train, test = Split(*digits.load("train")), Split(*digits.load("test"))
        class_names = [str(digit) for digit in range(10)]
    else:
        builder = tfds_source.open_builder(name, config.data_dir)
        train, test = (_load_tfds_split(builder, split) for split in ("train", "test"))
        class_names = tfds_source.class_names(builder)
    if not 0 <= holdout < len(train):
        raise UserError(f"config.data.holdout is {holdout}; it must be from 0 to {len(train) - 1}")
    validation = None
    if holdout:
        order = np.random.default_rng(0).permutation(len(train))
        kept, held = np.sort(order[holdout:]), np.sort(order[:holdout])
        validation = Split(train.images[held], train.labels[held])
        train = Split(train.images[kept], train.labels[kept])
    return Dataset(train, validation, test, class_names)


def _load_tfds_split(builder: Any, split: str) -> Split:
    def decode() -> tuple[np.ndarray, np.ndarray]:
        source = tfds_source.open_split(builder, split)
        label = f"decoding {builder.name} {split} (once)"
        try:
            records = [source[i] for i in tqdm(range(len(source)), label, unit=" images", delay=1, mininterval=1)]
        except Exception as error:  # array_record and the image decoders raise different ones for a damaged file.
            raise tfds_source.unreadable(builder, split, error) from error
        images = np.stack([record["image"] for record in records])
        return images, np.array([record["label"] for record in records], np.int32)

    return Split(*cached_arrays(f"{builder.name}-{split}", tfds_source.split_files(builder, split), decode))


def gather(split: Split, indices: jax.Array) -> dict[str, jax.Array]:
    """The batch {"image": (B, H, W, 3) uint8, "label": (B,)} at ``indices``, on the device.

    Where an index is -1 the label is, too, and the image is any.
    """
    return {"image": split.images[indices], "label": jnp.where(indices < 0, -1, split.labels[indices])}
