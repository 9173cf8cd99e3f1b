"""Photographs in a folder of class folders: ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg, or ROOT/CLASS/*.jpg.

Imports no jax.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from resnet_jax.data.class_names import readable_names
from resnet_jax.data.sources.protocol import Opened
from resnet_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_SPLITS = {"train": ("train",), "validation": ("validation", "val")}


class FolderSource:
    """``len`` and ``[i]`` giving {"image": the file's bytes, "label": int, "name": path below the root}.

    ``class_names`` are in the order of the labels. Can be pickled.
    """

    shorter_side: int | None = None

    def __init__(self, root: Path, files: list[str], labels: np.ndarray, class_names: list[str]) -> None:
        self.class_names = class_names
        self._root = root
        self._files = files
        self._labels = labels

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> dict[str, Any]:
        name = self._files[i]
        try:
            image = (self._root / name).read_bytes()
        except OSError as error:
            raise UserError(
                f"photograph {self._root / name} cannot be read ({error.strerror}); restore it, or remove it"
            ) from error
        return {"image": image, "label": int(self._labels[i]), "name": name}

    def labels(self) -> np.ndarray:
        """(N,) int32."""
        return self._labels

    def files(self) -> list[Path]:
        """Every photograph."""
        return [self._root / name for name in self._files]


def open_photographs(name: str, data_dir: str | None) -> Opened:
    """Those of the folder ``data_dir``. Raises UserError where it is not given or holds no split."""
    if data_dir is None:
        raise UserError(f"config.data.name={name} needs config.data_dir, the folder that holds the photographs")
    root = Path(data_dir).expanduser()
    splits = tuple(split for split in _SPLITS if _split_folder(root, split) is not None)
    return Opened(splits, partial(open_folder, root), class_names(root))


def open_folder(root: Path, split: str) -> FolderSource:
    """The photographs of ROOT/train, or of ROOT/validation or ROOT/val, at any depth below their class folders.

    Where there is none of these, the folders in ROOT are the classes of train.

    Sorted by class, then by path. Hidden files and those without one of ``SUFFIXES`` (in either case) are left out.
    Labels number the sorted class folders of train where there is one, so they mean the same in both splits. Raises
    UserError for a missing folder, a class that train lacks, or no photographs at all.
    """
    if split not in _SPLITS:
        raise UserError(f"a folder of photographs has no split {split!r}; use {' or '.join(_SPLITS)}")
    classes, folder = _classes(root), _split_folder(root, split)
    if folder is None:
        wanted = " or ".join(str(root / name) for name in _SPLITS[split])
        raise UserError(f"there is no folder {wanted}; it must hold a folder of photographs for each class")
    present = _class_folders(folder)
    if not present:
        raise UserError(f"there are no class folders in {folder}; put the photographs in {folder}/CLASS/")
    unknown = sorted(set(present) - set(classes))
    if unknown:
        train = _split_folder(root, "train")
        raise UserError(f"class {unknown[0]!r} of {folder} is not one of {train}; rename or remove that folder")
    files, labels = [], []
    for name in tqdm(present, f"listing {folder.name}", unit=" classes", delay=1, leave=False):
        found = sorted(os.path.relpath(path, root) for path in _photographs(folder / name))
        files += found
        labels += [classes.index(name)] * len(found)
    if not files:
        raise UserError(f"there are no photographs in {folder}; they must end in one of {', '.join(SUFFIXES)}")
    return FolderSource(root, files, np.array(labels, np.int32), readable_names(classes))


def class_names(root: Path) -> list[str]:
    """The names of the classes in the order of their labels. Raises UserError where there is no folder of a split."""
    return readable_names(_classes(root))


def _classes(root: Path) -> list[str]:
    """The class folders in the order of their labels: those of train, which may be elsewhere, or else of the other."""
    folder = _split_folder(root, "train") or _split_folder(root, "validation")
    if folder is None:
        missing = root / "train" if root.is_dir() else root
        raise UserError(f"there is no folder {missing}; give one that holds train/CLASS/*.jpg or val/CLASS/*.jpg")
    return _class_folders(folder)


def _split_folder(root: Path, split: str) -> Path | None:
    found = {name: root / name for names in _SPLITS.values() for name in names if (root / name).is_dir()}
    if not found and split == "train" and root.is_dir() and _class_folders(root):
        return root
    return next((found[name] for name in _SPLITS[split] if name in found), None)


def _class_folders(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise _no_access(error) from error


def _photographs(folder: Path) -> Iterator[str]:
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield os.path.join(parent, name)


def _raise(error: OSError) -> None:
    raise _no_access(error) from error


def _no_access(error: OSError) -> UserError:
    return UserError(f"folder {error.filename} cannot be read ({error.strerror}); fix its permissions")
