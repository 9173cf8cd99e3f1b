"""PASCAL VOC's folders, and ImageNet's with the same XML. Imports no jax.

VOC: ROOT/JPEGImages/ID.jpg, ROOT/Annotations/ID.xml and ROOT/ImageSets/Main/SPLIT.txt with an ID a line. ImageNet
(ILSVRC): ROOT/Data/TASK/FOLDER/ID.JPEG and ROOT/Annotations/TASK/FOLDER/ID.xml, TASK CLS-LOC or DET.
"""

import functools
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from resnet_jax.data.cache import cached_arrays
from resnet_jax.data.class_names import readable_names
from resnet_jax.data.sources.detection.protocol import Objects, OpenedDetection, make_objects
from resnet_jax.errors import UserError, one_line
from resnet_jax.files import expanded

# In the order of the development kit, which is that of its tables.
VOC_CLASSES = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]

_SUFFIXES = (".jpg", ".JPEG", ".jpeg", ".JPG", ".png")


@dataclass(frozen=True)
class XmlFiles:
    """The photographs and annotations of a split, pairwise, and the pixel that the annotations call the first.

    ``first_pixel``: 1 in VOC, 0 in ImageNet. Corners are pixels inside the object in both, so that the box of
    first pixel xmin and last pixel xmax covers [xmin - first_pixel, xmax - first_pixel + 1].
    """

    images: list[Path]
    annotations: list[Path]
    first_pixel: int


class XmlSource:
    """A ``DetectionSource`` of files; ``labels`` are those of the names in the XML."""

    shorter_side: int | None = None

    def __init__(self, files: XmlFiles, labels: dict[str, int]) -> None:
        self._files = files
        self._labels = labels

    def __len__(self) -> int:
        return len(self._files.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self._files.images[index]
        return {"image": read_photograph(path), "label": 0, "name": f"{path.parent.name}/{path.name}"}

    def objects(self, index: int) -> Objects:
        path = self._files.annotations[index]
        names, boxes, difficult = read_xml(path, self._files.first_pixel)
        unknown = next((name for name in names if name not in self._labels), None)
        if unknown is not None:
            raise UserError(
                f"class {unknown!r} in {path} is none of the {len(self._labels)} classes of the data set; correct it, "
                f"or list all classes in config.data.classes"
            )
        return make_objects(boxes, [self._labels[name] for name in names], difficult=difficult)

    def image_id(self, index: int) -> int:
        return index

    def files(self) -> list[Path]:
        return self._files.images + self._files.annotations


def read_photograph(path: Path) -> bytes:
    """The bytes of a photograph. Raises UserError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"photograph {path} cannot be read ({error.strerror}); restore it, or leave it out") from error


def read_xml(path: Path, first_pixel: int = 1) -> tuple[list[str], np.ndarray, list[bool]]:
    """The class names, boxes (n, 4) and difficult flags of the objects of a VOC annotation.

    Boxes are continuous; see ``XmlFiles`` for ``first_pixel``. In VOC xmin and ymin are thus less by one, as in
    detectron2. A box whose last pixel is not beyond its first one, both ways, is a slip of the mouse and not an object
    of one pixel: it has no area here. Raises UserError, naming the file, where it is missing or is no annotation.
    """
    names, boxes, difficult = [], [], []
    try:
        for found in ElementTree.parse(path).getroot().iter("object"):
            box = [float(found.findtext(f"bndbox/{corner}", "missing")) for corner in ("xmin", "ymin", "xmax", "ymax")]
            if not np.isfinite(box).all():
                raise ValueError("a corner is not finite")
            name = (found.findtext("name") or "").strip()
            if not name:
                raise ValueError("an object has no name")
            names.append(name)
            boxes.append(box)
            difficult.append(int(found.findtext("difficult") or 0) != 0)
    except OSError as error:
        raise UserError(f"annotation {path} cannot be read ({error.strerror}); restore it") from error
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"annotation {path} is not VOC's XML ({one_line(error)}); restore or correct it") from error
    corners = np.array(boxes).reshape(-1, 4) - first_pixel
    corners[:, 2:] += (corners[:, 2:] > corners[:, :2]).all(axis=1, keepdims=True)
    return names, corners, difficult


def open_voc(name: str, data_dir: str | None, splits: Sequence[str], classes: Sequence[str]) -> OpenedDetection:
    """VOC's layout in ``data_dir``; a split is "trainval", or "VOC2007:trainval" in a folder below.

    Classes are those given, else VOC's 20 where the splits hold no other, else the names that they hold, sorted.
    Raises UserError where a list, photograph or annotation is missing.
    """
    return _open(partial(_voc_files, _root(name, data_dir)), splits, classes)


def open_imagenet(name: str, data_dir: str | None, splits: Sequence[str], classes: Sequence[str]) -> OpenedDetection:
    """ImageNet's layout in ``data_dir``; a split is "CLS-LOC:train" or "DET:val".

    It holds the photographs that ROOT/ImageSets/TASK/SPLIT.txt lists (the first word of each line), where there is
    such a file, else all that have an annotation. Classes are those given, else the WordNet ids that the splits hold,
    sorted, as class folders are; ImageNet's 1,000 have their names in words.
    """
    return _open(partial(_imagenet_files, _root(name, data_dir)), splits, classes)


def _open(find: Callable[[str], XmlFiles], splits: Sequence[str], classes: Sequence[str]) -> OpenedDetection:
    find = functools.cache(find)  # Looks at every file of a split, of which there may be half a million.
    names = list(classes) or _class_names([find(split) for split in splits])
    labels = {name: label for label, name in enumerate(names)}
    return OpenedDetection(lambda split: XmlSource(find(split), labels), readable_names(names), list(range(len(names))))


def _class_names(found: list[XmlFiles]) -> list[str]:
    """The names of the classes in some splits; kept in the cache."""
    paths = [path for files in found for path in files.annotations]

    def find() -> tuple[np.ndarray]:
        bar = tqdm(paths, "finding the classes (once)", unit=" files", delay=1, leave=False)
        return (np.array(sorted({name for path in bar for name in read_xml(path)[0]}), str),)

    names = [str(name) for name in cached_arrays("voc-classes", paths, find, keys=("names",))[0]]
    if not names:
        raise UserError("the annotations hold no object; list the classes in config.data.classes")
    return VOC_CLASSES if set(names) <= set(VOC_CLASSES) else names


def _root(name: str, data_dir: str | None) -> Path:
    if data_dir is None:
        raise UserError(f"config.data.name={name} needs config.data_dir, the folder that holds the photographs")
    root = expanded(data_dir)
    if not root.is_dir():
        raise UserError(f"config.data_dir {root} does not exist; correct it")
    return root


def _voc_files(root: Path, split: str) -> XmlFiles:
    place, _, name = split.rpartition(":")
    folder = root / place
    ids = _read_list(folder / "ImageSets" / "Main" / f"{name}.txt")
    photographs = _photographs(folder / "JPEGImages")
    missing = next((one for one in ids if one not in photographs), None)
    if missing is not None:
        raise UserError(
            f"photograph {folder / 'JPEGImages' / missing}.jpg is missing; restore it, or take it off {name}.txt"
        )
    return _checked(
        [photographs[one] for one in ids], [folder / "Annotations" / f"{one}.xml" for one in ids], first_pixel=1
    )


def _imagenet_files(root: Path, split: str) -> XmlFiles:
    task, _, name = split.rpartition(":")
    if not task:
        raise UserError(f"split {split!r} of ImageNet lacks its task; use CLS-LOC:{split} or DET:{split}")
    folder = next((whole for whole in ("train", "val") if name.startswith(whole)), name)
    images, annotations = root / "Data" / task / folder, root / "Annotations" / task / folder
    listed = root / "ImageSets" / task / f"{name}.txt"
    if listed.exists():
        ids = _read_list(listed)
    else:
        walk = os.walk(annotations)
        ids = sorted(
            os.path.relpath(os.path.join(parent, file), annotations)[: -len(".xml")]
            for parent, _, files in walk
            for file in files
            if file.endswith(".xml") and not file.startswith(".")
        )
        if not ids:
            raise UserError(
                f"there are no annotations in {annotations}; correct config.data_dir or the split {split!r}"
            )
    return _checked(
        [_with_suffix(images, one) for one in ids], [annotations / f"{one}.xml" for one in ids], first_pixel=0
    )


def _checked(images: list[Path], annotations: list[Path], first_pixel: int) -> XmlFiles:
    for path in annotations:
        if not path.exists():
            raise UserError(f"annotation {path} is missing; restore it, or take the photograph off the list")
    return XmlFiles(images, annotations, first_pixel)


def _read_list(path: Path) -> list[str]:
    """The first word of each line."""
    try:
        ids = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise UserError(
            f"the list of photographs {path} cannot be read ({reason}); correct config.data_dir or the names of splits"
        ) from error
    if not ids:
        raise UserError(f"the list of photographs {path} is empty; choose another split")
    return ids


def _photographs(folder: Path) -> dict[str, Path]:
    """The photographs of a folder by name without suffix."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries)
    except OSError as error:
        raise UserError(f"folder {folder} cannot be read ({error.strerror}); it must hold the photographs") from error
    return {Path(name).stem: folder / name for name in names if name.endswith(_SUFFIXES)}


def _with_suffix(folder: Path, one: str) -> Path:
    for suffix in (".JPEG", *_SUFFIXES):
        if (path := folder / f"{one}{suffix}").exists():
            return path
    raise UserError(f"photograph {folder / one}.JPEG is missing; restore it, or remove its annotation")
