"""Streamed data sets of small photographs, in memory and in folders."""

import numpy as np
import PIL.Image

from resnet_jax.data import Photographs
from resnet_jax.data.crops import ScaleJitter
from resnet_jax.data.sources.protocol import Opened
from resnet_jax.data.streamed import StreamedDataset

CROP = 10


class Source(list):
    """Records in memory."""

    shorter_side = None

    def files(self):
        return []


def settings(**values):
    defaults = {"crop": ScaleJitter(shorter_side=(12, 20)), "crop_size": CROP, "eval_shorter_side": 12, "threads": 2}
    return Photographs(**defaults | {"name": "folder"} | values)


def dataset(splits, **values):
    """Of records, by split."""
    splits = {name: Source(records) for name, records in splits.items()}
    return StreamedDataset(Opened(tuple(splits), splits.__getitem__, ["cat", "dog"]), settings(**values))


def photographs(count):
    """Pixels of many sizes; none is 0."""
    found = []
    for i in range(count):
        pixels = np.random.default_rng(i).integers(60, 256, size=(11 + i % 7, 23 - i % 9, 3), dtype=np.uint8)
        found.append({"image": pixels, "label": i % 2, "name": f"{i}.jpg"})
    return found


def write_folder(root, count, split="train"):
    """ROOT/SPLIT/CLASS/*.png, of two classes."""
    for i, record in enumerate(photographs(count)):
        path = root / split / ("cat", "dog")[i % 2] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(record["image"]).save(path)
