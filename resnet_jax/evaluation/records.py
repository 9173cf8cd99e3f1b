"""What an evaluation leaves on disk: a line in a table of all results, and a line for every image."""

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.data.dataset import Dataset
from resnet_jax.errors import UserError, one_line
from resnet_jax.evaluation.classify import TOP, Scores
from resnet_jax.files import replace_atomically

_ENCODING: Any = {"encoding": "utf-8", "errors": "surrogateescape"}  # Names of files may be any bytes.


_ALWAYS = ("model", "data", "split", "protocol", "weights")  # Columns of every table of results.


def check_table(path: Path) -> None:
    """Raises UserError for a file that is no table of results."""
    if path.is_file() and path.stat().st_size:
        _check_columns(path, _columns(path), _ALWAYS)


def _columns(path: Path) -> list[str]:
    with path.open(newline="", **_ENCODING) as file:
        return next(csv.reader(file))


def _check_columns(path: Path, columns: Sequence[str], needed: Iterable[str]) -> None:
    missing = [name for name in needed if name not in columns]
    if missing:
        raise UserError(f"{path} has the columns {', '.join(columns)}, not {', '.join(missing)}; use another file")


def append_result(path: Path, record: dict[str, Any]) -> None:
    """Adds a line to a CSV file, which it begins with a header.

    Columns that the record lacks, such as the top-5 error of five classes, stay empty. Raises UserError if the file
    lacks one of the record's.
    """
    columns, exists = list(record), path.exists() and path.stat().st_size > 0
    ended = True
    if exists:
        with path.open("rb") as end:
            end.seek(-1, os.SEEK_END)
            ended = end.read() == b"\n"
        columns = _columns(path)
        _check_columns(path, columns, record)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    if not ended:  # As an editor may leave it.
        text.write("\r\n")
    if not exists:
        writer.writeheader()
    writer.writerow(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", **_ENCODING) as file:
        file.write(text.getvalue())  # In one piece, so that two programs do not mix their lines.


def write_scores(path: Path, scores: Scores, dataset: Dataset, split: str) -> None:
    """Writes a CSV file with a line for every image that could be scored, in the order of the split.

    Its index and name, its label, the rank of its own class (1 is right) and that class's probability, and the five
    best classes with their probabilities.
    """
    class_names, top = dataset.class_names, min(TOP, scores.log_probs.shape[1])
    columns = ["index", "name", "label", "rank", "probability"]
    columns += [f"{what}{place}" for place in range(1, top + 1) for what in ("class", "probability")]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    for index in np.flatnonzero(scores.labels >= 0):
        log_probs, label = scores.log_probs[index], scores.labels[index]
        order = np.argsort(-log_probs, kind="stable")
        rank = int(np.flatnonzero(order == label)[0]) + 1
        name = dataset.example_name(split, int(index))
        row = [index, name, class_names[label], rank, f"{np.exp(log_probs[label]):.6g}"]
        for best in order[:top]:
            row += [class_names[best], f"{np.exp(log_probs[best]):.6g}"]
        writer.writerow(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(path) as file:
        file.write(text.getvalue().encode(**_ENCODING))


def read_best_classes(path: Path, class_names: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """(N, P) the best classes of N photographs, the likeliest first, out of a file of ``write_scores``.

    Photographs are found by their files' names, without folders and suffixes, and classes by theirs (of two of one
    name, ImageNet's cranes, the first): the file may be of another data set with the same photographs. Raises UserError
    where it cannot be read, has two photographs of one name, or lacks one.
    """
    labels = {name: label for label, name in reversed(list(enumerate(class_names)))}
    remedy = "make it with eval.py --scores_csv of a network for the same classes on the same photographs"
    try:
        with path.open(newline="", **_ENCODING) as file:
            reader = csv.DictReader(file)
            columns = [f"class{place}" for place in range(1, TOP + 1) if f"class{place}" in (reader.fieldnames or ())]
            rows = [(Path(row["name"]).stem, [row[column] for column in columns]) for row in reader]
        if any(None in best for _, best in rows):
            raise ValueError("a line has fewer fields than the first")
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise UserError(f"{path} is not a table of scores ({one_line(error)}); {remedy}") from error
    found = dict(rows)
    if len(found) < len(rows):
        twice = next(stem for stem, count in Counter(stem for stem, _ in rows).items() if count > 1)
        raise UserError(f"{path} has two photographs called {twice}; {remedy}, of which all names differ")
    unknown = next((name for _, best in rows for name in best if name not in labels), None)
    if unknown is not None:
        raise UserError(f"{path} has the class {unknown!r}, which the data set does not have; {remedy}")
    missing = next((name for name in names if Path(name).stem not in found), None)
    if missing is not None or not columns:
        lacks = f"the photograph {missing}" if columns else "the column class1"
        raise UserError(f"{path} lacks {lacks}; {remedy}")
    return np.array([[labels[name] for name in found[Path(name).stem]] for name in names], np.int32)
