"""COCO's folders: ROOT/annotations/instances_SPLIT.json and ROOT/SPLIT/*.jpg. Imports no jax."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.data.cache import cached_arrays
from resnet_jax.data.sources.detection.protocol import Objects, ObjectTable, OpenedDetection
from resnet_jax.data.sources.detection.voc import read_photograph
from resnet_jax.errors import UserError, one_line
from resnet_jax.files import expanded

_KEYS = ("names", "image_ids", "starts", *Objects._fields, "category_ids", "category_names")


class CocoSource:
    """A ``DetectionSource``, sorted by the photographs' ids, as COCO's own evaluation is."""

    shorter_side: int | None = None

    def __init__(self, folder: Path, description: Path, arrays: dict[str, np.ndarray]) -> None:
        self.category_ids = arrays["category_ids"].tolist()
        self.class_names = arrays["category_names"].tolist()
        self._folder = folder
        self._description = description
        self._names = arrays["names"]
        self._ids = arrays["image_ids"]
        self._table = ObjectTable(arrays["starts"], Objects(*(arrays[key] for key in Objects._fields)))

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = str(self._names[index])
        return {"image": read_photograph(self._folder / name), "label": 0, "name": name}

    def objects(self, index: int) -> Objects:
        return self._table[index]

    def image_id(self, index: int) -> int:
        return int(self._ids[index])

    def files(self) -> list[Path]:
        """The JSON file, and every photograph."""
        return [self._description, *(self._folder / str(name) for name in self._names)]


def open_coco(name: str, data_dir: str | None, splits: Sequence[str], classes: Sequence[str]) -> OpenedDetection:
    """COCO's layout in ``data_dir``; a split is "train2017", or "FOLDER:train2017" in a folder below.

    Labels are the places of the categories sorted by id, which must be the same in all splits. ``test-dev2017``, which
    has no boxes, is annotations/image_info_test-dev2017.json with the photographs of test2017, unless there is a folder
    of its own name. Raises UserError where a file is missing or is no JSON of COCO's.
    """
    if data_dir is None:
        raise UserError(f"config.data.name={name} needs config.data_dir, the folder that holds annotations/")
    if classes:
        raise UserError("config.data.classes is set, but COCO's JSON names its classes itself; remove it")
    root = expanded(data_dir)
    first = open_json(root, splits[0])

    def open_split(split: str) -> CocoSource:
        source = open_json(root, split) if split != splits[0] else first
        if (source.category_ids, source.class_names) != (first.category_ids, first.class_names):
            raise UserError(f"the categories of {split} and {splits[0]} in {root} differ; use splits of one data set")
        return source

    return OpenedDetection(open_split, first.class_names, first.category_ids)


def open_json(root: Path, split: str) -> CocoSource:
    """A split; what its JSON file holds is kept in the cache, as reading COCO's takes half a minute."""
    place, _, name = split.rpartition(":")
    folder = root / place
    description = folder / "annotations" / f"instances_{name}.json"
    if not description.exists() and (images_only := description.with_name(f"image_info_{name}.json")).exists():
        description = images_only
    if not description.exists():
        raise UserError(f"there is no file {description}; correct config.data_dir or the names of splits")
    photographs = folder / name
    if not photographs.is_dir():  # Those of COCO's test-dev2017 are among test2017's.
        photographs = folder / name.replace("-dev", "")
    arrays = cached_arrays(f"coco-{name}-json", [description], lambda: _read(description), keys=_KEYS)
    source = CocoSource(photographs, description, dict(zip(_KEYS, arrays, strict=True)))
    if not len(source):
        raise UserError(f"{description} lists no photographs; choose another split")
    missing = next((path for path in source.files() if not path.exists()), None)
    if missing is not None:
        raise UserError(f"photograph {missing} is missing; restore it, or correct {description}")
    return source


def _read(path: Path) -> tuple[np.ndarray, ...]:
    """The arrays of ``_KEYS``."""
    try:
        content = json.loads(path.read_bytes())
        categories = sorted(content["categories"], key=lambda category: category["id"])
        labels = {category["id"]: label for label, category in enumerate(categories)}
        images = sorted(content["images"], key=lambda image: image["id"])
        rows: dict[int, list[tuple[Any, ...]]] = {image["id"]: [] for image in images}
        if not len(labels) == len(categories) or not len(rows) == len(images):
            raise ValueError("an id occurs twice")
        for found in content.get("annotations", []):
            x, y, width, height = map(float, found["bbox"])
            row = (x, y, x + width, y + height, labels[found["category_id"]], bool(found.get("iscrowd", 0)))
            rows[found["image_id"]].append((*row, float(found.get("area", width * height))))
        flat = np.array([row for image in images for row in rows[image["id"]]], np.float64).reshape(-1, 7)
        if not np.isfinite(flat).all():
            raise ValueError("a box is not finite")
        return (
            np.array([image["file_name"] for image in images], str),
            np.array([image["id"] for image in images], np.int64),
            np.cumsum([0, *(len(rows[image["id"]]) for image in images)]),
            flat[:, :4],
            flat[:, 4].astype(np.int32),
            flat[:, 5].astype(bool),
            np.zeros(len(flat), bool),
            flat[:, 6],
            np.array([category["id"] for category in categories], np.int64),
            np.array([category["name"] for category in categories], str),
        )
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); fix its permissions") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not COCO's JSON ({one_line(error)}); restore it") from error
