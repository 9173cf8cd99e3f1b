"""What an evaluation leaves on disk: a line in a table of all results, and a line for every image."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.data.dataset import Data
from resnet_jax.data.streaming import Photographs
from resnet_jax.errors import UserError
from resnet_jax.evaluation.classify import Scores
from resnet_jax.files import replace_atomically

TOP = 5


def append_result(path: Path, record: dict[str, Any]) -> None:
    """Adds a line to a CSV file, which it begins with a header. Raises UserError if the file has other columns."""
    exists = path.exists() and path.stat().st_size > 0
    if exists:
        with path.open(newline="") as file:
            header = next(csv.reader(file))
        if header != list(record):
            raise UserError(f"{path} has the columns {', '.join(header)}, not {', '.join(record)}; use another file")
    text = io.StringIO()
    writer = csv.DictWriter(text, list(record))
    if not exists:
        writer.writeheader()
    writer.writerow(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        file.write(text.getvalue())  # In one piece, so that two programs do not mix their lines.


def write_scores(path: Path, scores: Scores, data: Data, split: str) -> None:
    """Writes a CSV file with a line for every image that could be scored, in the order of the split.

    Its index and name, its label, the rank of its own class (1 is right) and that class's probability, and the five
    best classes with their probabilities.
    """
    source = data.split(split) if isinstance(data, Photographs) else None
    top = min(TOP, scores.log_probs.shape[1])
    columns = ["index", "name", "label", "rank", "probability"]
    columns += [f"{what}{place}" for place in range(1, top + 1) for what in ("class", "probability")]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    for index in np.flatnonzero(scores.labels >= 0):
        log_probs, label = scores.log_probs[index], scores.labels[index]
        order = np.argsort(-log_probs, kind="stable")
        rank = int(np.flatnonzero(order == label)[0]) + 1
        name = source[int(index)]["name"] if source is not None else f"{split}[{index}]"
        row = [index, name, data.class_names[label], rank, f"{np.exp(log_probs[label]):.6g}"]
        for best in order[:top]:
            row += [data.class_names[best], f"{np.exp(log_probs[best]):.6g}"]
        writer.writerow(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(path) as file:
        file.write(text.getvalue().encode())
