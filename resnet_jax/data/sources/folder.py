"""Photographs in a folder of class folders: ROOT/train/CLASS/*.jpg, ROOT/val/CLASS/*.jpg, or ROOT/CLASS/*.jpg.

Imports no jax.
"""

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from resnet_jax.data.class_names import readable_names
from resnet_jax.data.sources.protocol import SPLIT_NAMES, Opened
from resnet_jax.errors import UserError
from resnet_jax.files import expanded

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


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
    root = expanded(data_dir)
    return Opened(tuple(split_folders(root)), partial(open_folder, root), class_names(root))


def open_folder(root: Path, split: str) -> FolderSource:
    """The photographs of a split's folder, at any depth below its class folders.

    A split's folder is one of ``protocol.SPLIT_NAMES`` in ROOT, in either case, such as ROOT/train and ROOT/val, unless
    it holds photographs and no folders. Where there is none, the folders in ROOT are the classes of train.

    Sorted by class, then by path. Hidden files and those without one of ``SUFFIXES`` (in either case) are left out.
    Labels number the sorted class folders of train where there is one, so they mean the same in all splits. Raises
    UserError for a missing folder, a class that train lacks, or no photographs at all.
    """
    if split not in SPLIT_NAMES:
        raise UserError(f"a folder of photographs has no split {split!r}; use {' or '.join(SPLIT_NAMES)}")
    classes, folders = _classes(root), split_folders(root)
    if split not in folders:
        wanted = " or ".join(SPLIT_NAMES[split])
        raise UserError(f"there is no folder {wanted} in {root}; it must hold a folder of photographs for each class")
    folder = folders[split]
    present = _class_folders(folder)
    if not present:
        raise UserError(f"there are no class folders in {folder}; put the photographs in {folder}/CLASS/")
    unknown = sorted(set(present) - set(classes))
    if unknown:
        raise UserError(f"class {unknown[0]!r} of {folder} is not one of {folders['train']}; rename or remove it")
    files: list[str] = []
    labels: list[int] = []
    empty = []
    for name in tqdm(present, f"listing {folder.name}", unit=" classes", delay=1, leave=False):
        place, below = str(folder / name), os.path.relpath(folder / name, root)  # Once: it takes longer than listing.
        found = sorted(below + path.removeprefix(place) for path in photographs(folder / name))
        files += found
        empty += [] if found else [name]
        labels += [classes.index(name)] * len(found)
    if not files:
        raise UserError(f"there are no photographs in {folder}; they must end in one of {', '.join(SUFFIXES)}")
    if empty and folder == folders.get("train"):
        print(
            f"warning: {', '.join(empty)} in {folder} hold no photographs, and are classes all the same; remove those "
            f"that are none",
            file=sys.stderr,
        )
    return FolderSource(root, files, np.array(labels, np.int32), readable_names(classes))


def class_names(root: Path) -> list[str]:
    """The names of the classes in the order of their labels. Raises UserError where there is no folder of a split."""
    return readable_names(_classes(root))


def _classes(root: Path) -> list[str]:
    """The class folders in the order of their labels: those of train, which may be elsewhere, or else of another."""
    folders = split_folders(root)
    if not folders:
        missing = root / "train" if root.is_dir() else root
        raise UserError(f"there is no folder {missing}; give one that holds train/CLASS/*.jpg or val/CLASS/*.jpg")
    return _class_folders(next(iter(folders.values())))


def split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split, train first. Raises UserError where photographs of splits are in no class folders."""
    if not root.is_dir():
        return {}
    names = _class_folders(root)
    named = {name: split for name in names for split, known in SPLIT_NAMES.items() if name.lower() in known}
    found = {name: split for name, split in named.items() if not _is_class(root / name)}
    if named and not found and len(named) == len(names):
        raise UserError(f"there are no class folders in {root / names[0]}; put the photographs in {names[0]}/CLASS/")
    if not found:
        return {"train": root} if names else {}
    return {split: root / name for split in SPLIT_NAMES for name in found if found[name] == split}


def _is_class(folder: Path) -> bool:
    """Whether photographs lie in it, and no folders."""
    return not _class_folders(folder) and any(photographs(folder))


def _class_folders(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise _no_access(error) from error


def photographs(folder: Path) -> Iterator[str]:
    """The paths of those in a folder, at any depth; hidden files and folders are left out."""
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(parent, name) for name in names if _is_photograph(name))


def _is_photograph(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _raise(error: OSError) -> None:
    raise _no_access(error) from error


def _no_access(error: OSError) -> UserError:
    return UserError(f"folder {error.filename} cannot be read ({error.strerror}); fix its permissions")
