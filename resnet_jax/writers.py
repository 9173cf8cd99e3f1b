"""What a run leaves for people: metrics.jsonl (the record), TensorBoard events, a progress bar."""

import json
import os
from pathlib import Path
from typing import Any

from tqdm import tqdm

from resnet_jax.files import replace_atomically


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line torn by a kill is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class MetricsWriter:
    """Appends one record a step to ``workdir/metrics.jsonl`` and TensorBoard, and drives the progress bar.

    Opening it at ``step`` drops the records after that step, which a killed run may have written beyond its last
    checkpoint and is about to write again.
    """

    def __init__(self, workdir: Path, step: int, total_steps: int) -> None:
        from tensorboardX import SummaryWriter  # Slow to import, and of no use to a library user.

        path = workdir / "metrics.jsonl"
        kept = [record for record in read_metrics(path) if record["step"] <= step]
        with replace_atomically(path) as file:
            file.write("".join(json.dumps(record) + "\n" for record in kept).encode())
        self._file = path.open("a")
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
        self._bar = tqdm(total=total_steps, initial=step, unit="step", dynamic_ncols=True)

    def advance(self, steps: int) -> None:
        """Moves the progress bar on."""
        self._bar.update(steps)

    def write(self, record: dict[str, Any]) -> None:
        """Writes a record ({"step": int, name: number, ...}) for good before it returns."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        for name, value in record.items():
            if name != "step":
                self._events.add_scalar(name, value, record["step"])
        self._bar.set_postfix_str(_summary(record))

    def close(self) -> None:
        self._file.close()
        self._events.close()
        self._bar.close()


def _summary(record: dict[str, Any]) -> str:
    formats = {
        "train_loss": "loss {:.3f}",
        "train_error": "train error {:.2f}%",
        "test_error": "test error {:.2f}%",
        "validation_error": "validation error {:.2f}%",
        "learning_rate": "lr {:.3g}",
        "images_per_second": "{:.0f} images/s",
    }
    return ", ".join(text.format(record[name]) for name, text in formats.items() if name in record)
