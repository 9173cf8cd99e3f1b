"""A Hugging Face data set of photographs and classes, from the folder that ``save_to_disk`` wrote. Imports no jax."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.data.class_names import readable_names
from resnet_jax.data.sources.protocol import SPLIT_NAMES, Opened
from resnet_jax.errors import UserError, one_line
from resnet_jax.files import expanded


class HuggingFaceSource:
    """``len`` and ``[i]`` giving {"image": the file's bytes, "label": int, "name": its path, or split and place}.

    ``dataset``: a ``datasets.Dataset`` whose column ``image`` is not decoded. Can be pickled.
    """

    shorter_side: int | None = None

    def __init__(self, dataset: Any, split: str, image: str, label: str) -> None:
        self._dataset = dataset
        self._split = split
        self._image = image
        self._label = label

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self._dataset[int(i)]
        stored = row[self._image] or {}
        name = stored.get("path") or f"{self._split}/{i}"
        content = stored.get("bytes")
        if content is None:
            try:
                content = Path(name).read_bytes()
            except OSError as error:
                raise UserError(
                    f"photograph {name} cannot be read ({error.strerror}); save the data set again with it"
                ) from None
        return {"image": content, "label": int(row[self._label]), "name": name}

    def labels(self) -> np.ndarray:
        """(N,) int32."""
        return np.array(self._dataset.select_columns(self._label)[:][self._label], np.int32)

    def files(self) -> list[Path]:
        """The Arrow files of the split."""
        return [Path(file["filename"]) for file in self._dataset.cache_files]


def open_photographs(name: str, data_dir: str | None) -> Opened:
    """Those of the folder ``data_dir``: columns "image" and "label", or the only ones of features Image and ClassLabel.

    A data set without splits is that of train. A split without labels, as test may be, is left out, which is said on
    stderr. Raises UserError where the data set cannot be read, or is of another kind, or lacks some labels of a split.
    """
    if data_dir is None:
        raise UserError(f"config.data.name={name} needs config.data_dir, the folder that save_to_disk wrote")
    folder = expanded(data_dir)
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise UserError(f"config.data.name={name} needs {error.name}: pip install {error.name}") from None
    if not folder.is_dir():
        raise UserError(f"config.data_dir {folder} does not exist; give the folder that save_to_disk wrote")
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # The library raises its own and Arrow's kinds.
        raise UserError(
            f"{folder} cannot be read as a Hugging Face data set ({one_line(error)}); save it again"
        ) from None
    found = loaded if isinstance(loaded, dict) else {"train": loaded}
    parts = {}
    for split, names in SPLIT_NAMES.items():
        chosen = next((found[name] for name in names if name in found), None)
        if chosen is not None:
            parts[split] = chosen
    if not parts:
        raise UserError(f"{folder} has no split train, but {', '.join(found)}; save it with one")
    first = next(iter(parts.values()))
    image, label = _columns(first.features, folder)
    encoded = {
        split: part.cast_column(image, datasets.Image(decode=False))
        for split, part in parts.items()
        if _has_labels(part, label, f"{folder}, split {split},")
    }
    if not encoded:
        raise UserError(f"{folder} has no labels; save it with them")
    class_names = readable_names(first.features[label].names)
    return Opened(tuple(encoded), partial(_open, encoded, folder, image, label), class_names)


def _has_labels(part: Any, label: str, name: str) -> bool:
    """Whether the examples have labels. Raises UserError where only some of them have one."""
    found = part.select_columns(label)[:][label]
    missing = sum(value is None or value < 0 for value in found)
    if missing == len(found):
        print(f"{name} has no labels and is left out", file=sys.stderr)
    elif missing:
        raise UserError(f"{missing} of the {len(found)} rows of {name} have no label; save it again without them")
    return missing < len(found)


def _open(parts: dict[str, Any], folder: Path, image: str, label: str, split: str) -> HuggingFaceSource:
    if split not in parts:
        raise UserError(f"{folder} has no split {split!r}; it has {', '.join(parts)}")
    return HuggingFaceSource(parts[split], split, image, label)


def _columns(features: Any, folder: Path) -> tuple[str, str]:
    """What the data set calls the image and the label. Raises UserError where that cannot be told."""
    found = []
    for column, kind, fix in (
        ("image", "Image", 'cast_column("image", datasets.Image())'),
        ("label", "ClassLabel", 'class_encode_column("label")'),
    ):
        columns = [name for name, feature in features.items() if type(feature).__name__ == kind]
        if column not in columns and len(columns) != 1:
            raise UserError(
                f"{folder} has no column {column!r} and not just one {kind} in its place, but {', '.join(features)}; "
                f"save it again after {fix}"
            )
        found.append(column if column in columns else columns[0])
    return found[0], found[1]
