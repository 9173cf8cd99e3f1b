"""The detection data sets of TensorFlow Datasets: voc/2007, voc/2012, coco/2017. Imports no jax.

Corners there are fractions of the photograph's sides. VOC's are its one-based pixels divided by the sides, so that the
upper ones are too large by a pixel; COCO's are exact.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.data.decode.images import UnreadableImage, image_size
from resnet_jax.data.sources.detection.protocol import Objects, OpenedDetection, make_objects
from resnet_jax.data.sources.tfds import TfdsRecords, open_builder, open_records, parse_lists
from resnet_jax.errors import UserError

# COCO's 80 ids of 1 to 90, in the order of the labels of coco/2014 and coco/2017.
_COCO_IDS = [number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


class TfdsDetectionSource:
    """A ``DetectionSource``; ``one_based`` says that the upper and left corners are too large by a pixel."""

    shorter_side: int | None = None

    def __init__(self, records: TfdsRecords, one_based: bool) -> None:
        self._records = records
        self._one_based = one_based

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        fields = self._records.read(index, parse_lists)
        named = fields.get("image/filename")
        name = named[0].decode(errors="replace") if named else self._records.name(index)
        return {"image": fields["image"][0], "label": 0, "name": name}

    def objects(self, index: int) -> Objects:
        return self._records.read(index, self._objects)

    def _objects(self, data: bytes) -> Objects:
        fields = parse_lists(data)
        try:
            height, width = image_size(fields["image"][0])
        except UnreadableImage:  # It is left out and named elsewhere.
            return make_objects([], [])
        top, left, bottom, right = np.array(fields.get("objects/bbox", []), np.float64).reshape(-1, 4).T
        shift = 1 if self._one_based else 0
        boxes = np.stack([left * width - shift, top * height - shift, right * width, bottom * height], axis=1)
        crowd, difficult = (list(fields.get(f"objects/{flag}", [])) or None for flag in ("is_crowd", "is_difficult"))
        areas = list(fields.get("objects/area", [])) or None
        return make_objects(boxes, list(fields.get("objects/label", [])), crowd, difficult, areas)

    def image_id(self, index: int) -> int:
        fields = self._records.read(index, parse_lists)
        return int(fields["image/id"][0]) if "image/id" in fields else index

    def files(self) -> list[Path]:
        return self._records.files()


def open_tfds(name: str, data_dir: str | None, splits: Sequence[str], classes: Sequence[str]) -> OpenedDetection:
    """A data set of TFDS with the feature "objects"; a split is "train", or "voc/2012:train" of another data set.

    Raises UserError where one is not found, has no objects, or other classes than the first.
    """
    if classes:
        raise UserError(f"config.data.classes is set, but {name} names its classes itself; remove it")
    first = _named(name, splits[0])[0]
    builders = {first: open_builder(first, data_dir)}
    class_names = _class_names(first, builders[first])

    def open_split(split: str) -> TfdsDetectionSource:
        part, own = _named(name, split)
        if part not in builders:
            builders[part] = open_builder(part, data_dir)
        if _class_names(part, builders[part]) != class_names:
            raise UserError(f"the classes of {part} and {first} differ; use splits of one data set")
        return TfdsDetectionSource(open_records(builders[part], own), one_based=part.split("/")[0] == "voc")

    is_coco = first.split("/")[0] == "coco" and len(class_names) == len(_COCO_IDS)
    return OpenedDetection(open_split, class_names, _COCO_IDS if is_coco else list(range(len(class_names))))


def _named(name: str, split: str) -> tuple[str, str]:
    """The data set and the split of it; the slice in "train[:90%]" has a colon, too."""
    part, colon, own = split.partition(":")
    return (part, own) if colon and "[" not in part else (name, split)


def _class_names(name: str, builder: Any) -> list[str]:
    try:
        return list(builder.info.features["objects"]["label"].names)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"data set {name!r} has no objects with labels; choose one for detection, such as voc/2007 or coco/2017"
        ) from error
