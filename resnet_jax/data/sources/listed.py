"""Photographs listed in tables: DATA_DIR/train.csv, val.csv and test.csv, or .jsonl, or one such file. Imports no jax.

A table has the columns "path" (below the table's folder, or absolute) and "label" (any text); a .jsonl file has an
object with these keys on each line.
"""

import csv
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from resnet_jax.data.class_names import readable_names
from resnet_jax.data.sources.folder import FolderSource
from resnet_jax.data.sources.protocol import SPLIT_NAMES, Opened
from resnet_jax.errors import UserError, one_line
from resnet_jax.files import expanded


def open_photographs(name: str, data_dir: str | None) -> Opened:
    """Those of the tables of the kind ``name``, "csv" or "jsonl", in the folder ``data_dir``, or of that one file.

    The classes are the labels of train, sorted, as numbers where all are. Raises UserError where there is no table,
    where one cannot be read, or where another has a label that train lacks.
    """
    if data_dir is None:
        raise UserError(f"config.data.name={name} needs config.data_dir, the folder of train.{name} or such a file")
    place = expanded(data_dir)
    tables = _tables(place, name)
    if "train" not in tables:
        raise UserError(f"there is no file {place / f'train.{name}'}; correct config.data_dir, or write the table")
    rows = {split: _rows(path, name) for split, path in tables.items()}
    classes = _sorted({label for _, label in rows["train"]})
    numbers = {label: number for number, label in enumerate(classes)}
    class_names, splits = readable_names(classes), {}
    for split, listed in rows.items():
        for _, label in listed:
            if label not in numbers:
                raise UserError(f"{tables[split]} has the label {label!r}, which {tables['train']} lacks; correct it")
        labels = np.array([numbers[label] for _, label in listed], np.int32)
        splits[split] = FolderSource(tables[split].parent, [path for path, _ in listed], labels, class_names)
    return Opened(tuple(splits), partial(_split, splits, place), class_names)


def _split(splits: dict[str, FolderSource], place: Path, split: str) -> FolderSource:
    if split not in splits:
        raise UserError(f"there is no table of the split {split!r} in {place}; it has {', '.join(splits)}")
    return splits[split]


def _tables(place: Path, kind: str) -> dict[str, Path]:
    """The table of each split that there is; a file alone is that of train."""
    if place.is_file():
        return {"train": place}
    found = {}
    for split, names in SPLIT_NAMES.items():
        path = next((place / f"{name}.{kind}" for name in names if (place / f"{name}.{kind}").is_file()), None)
        if path is not None:
            found[split] = path
    return found


def _rows(path: Path, kind: str) -> list[tuple[str, str]]:
    """(path, label) of each line, without spaces around them. Raises UserError, with the line, for one without both."""
    found = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for line, row in _json_lines(file) if kind == "jsonl" else _csv_lines(file, path):
                values = [row.get(key) for key in ("path", "label")] if isinstance(row, dict) else []
                read = [str(value).strip() for value in values if value is not None]
                if len(read) < 2 or not all(read):
                    raise UserError(f"line {line} of {path} has no path or no label; write both")
                found.append((read[0], read[1]))
    except UserError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table ({one_line(error)}); correct it") from error
    if not found:
        raise UserError(f"{path} lists no photographs; write a line for each")
    return found


def _csv_lines(file: Iterator[str], path: Path) -> Iterator[tuple[int, object]]:
    reader = csv.DictReader(file, skipinitialspace=True)
    columns = [name.strip() for name in reader.fieldnames or ()]
    if not {"path", "label"} <= set(columns):
        raise UserError(
            f"the first line of {path} must name the columns path and label, separated by a comma; it is "
            f"{','.join(columns)!r}"
        )
    reader.fieldnames = columns
    for row in reader:
        yield reader.line_num, row


def _json_lines(file: Iterator[str]) -> Iterator[tuple[int, object]]:
    for line, text in enumerate(file, start=1):
        if text.strip():
            try:
                yield line, json.loads(text)
            except ValueError as error:
                raise ValueError(f"line {line}: {error}") from None


def _sorted(labels: set[str]) -> list[str]:
    if all(label.isdecimal() for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))  # 1 and 01 are two labels.
    return sorted(labels)
