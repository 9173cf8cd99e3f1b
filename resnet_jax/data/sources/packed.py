"""Photographs decoded and resized once by ``data.pack``: pixels in FOLDER/SPLIT.bin, their places in FOLDER/SPLIT.npz.

Reading them decodes nothing, and a crop touches only its own rows. Imports no jax.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.data.sources.protocol import Opened
from resnet_jax.errors import UserError, one_line
from resnet_jax.files import expanded

SPLITS = ("train", "validation", "test")


class PackedSource:
    """``len`` and ``[i]`` giving {"image": (H, W, 3) uint8, read-only, "label": int, "name": str}.

    ``class_names`` are in the order of the labels; ``shorter_side`` and ``num_records`` are the largest shorter side in
    pixels and the length of the source that was packed. Pickling keeps only the place; unpickling opens it again.
    """

    def __init__(self, folder: Path, split: str, index: dict[str, np.ndarray]) -> None:
        self.class_names = [str(name) for name in index["class_names"]]
        self.shorter_side = int(index["shorter_side"])
        self.num_records = int(index["num_records"])
        self._place = folder, split
        self._index = index
        self._pixels = np.memmap(folder / f"{split}.bin", np.uint8, "r").view(np.ndarray)

    def __len__(self) -> int:
        return len(self._index["labels"])

    def __getitem__(self, i: int) -> dict[str, Any]:
        offset, height, width, label = (int(self._index[key][i]) for key in ("offsets", "heights", "widths", "labels"))
        image = self._pixels[offset : offset + height * width * 3].reshape(height, width, 3)
        return {"image": image, "label": label, "name": self._index["names"][i].decode(errors="surrogateescape")}

    def labels(self) -> np.ndarray:
        """(N,) int32."""
        return self._index["labels"].astype(np.int32)

    def files(self) -> list[Path]:
        """The pixels, and their places."""
        return list(files(*self._place))

    def __reduce__(self) -> tuple[Any, ...]:
        return open_pack, self._place


def open_pack(folder: Path, split: str) -> PackedSource:
    """Opens what ``write_pack`` wrote. Raises UserError if it is missing, unfinished or damaged."""
    pixels, entry = files(folder, split)
    if not entry.exists():
        state = "was not finished" if pixels.exists() else "does not exist"
        raise UserError(f"the pack {folder}/{split} {state}; make it with python -m resnet_jax.data.pack")
    again = f"delete {entry} and make it again with python -m resnet_jax.data.pack"
    try:
        with entry.open("rb") as file, np.load(file) as saved:
            index = dict(saved)
        expected = int((index["heights"].astype(np.int64) * index["widths"] * 3).sum())
        size = pixels.stat().st_size
        if size != expected:
            raise UserError(f"{pixels} is damaged: it has {size} bytes, not {expected}; {again}")
        return PackedSource(folder, split, index)
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each have their own for a damaged file.
        raise UserError(f"the pack {folder}/{split} is damaged ({one_line(error)}); {again}") from error


def open_photographs(name: str, data_dir: str | None) -> Opened:
    """The packs in the folder ``data_dir``. Raises UserError where it is not given or holds none."""
    if data_dir is None:
        raise UserError(f"config.data.name={name} needs config.data_dir, the folder that holds the pack")
    folder = expanded(data_dir)
    splits = tuple(split for split in SPLITS if files(folder, split)[1].exists())
    class_names = open_pack(folder, splits[0] if splits else "train").class_names
    return Opened(splits, partial(open_pack, folder), class_names)


def files(folder: Path, split: str) -> tuple[Path, Path]:
    """The file of the pixels of a split and that of their places."""
    return folder / f"{split}.bin", folder / f"{split}.npz"
