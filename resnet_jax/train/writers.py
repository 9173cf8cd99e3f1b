"""What a run leaves for people: metrics.jsonl (the record), TensorBoard events, and its progress on stderr."""

import json
import math
import os
import sys
import time
from itertools import count
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from resnet_jax.errors import UserError
from resnet_jax.files import replace_atomically

_EVALUATED = ("test_", "validation_")  # Figures of evaluations, with which a checkpoint is saved.


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; none if there is no file. A last line torn by a kill is left out.

    Raises UserError for any other line that is no record.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    records = []
    for number, line in enumerate(lines[:-1], start=1):  # What follows the last line break is nothing, or torn.
        try:
            record = json.loads(line)
            int(record["step"])
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path}, line {number} is damaged; fix or remove the line") from None
        records.append(record)
    return records


def to_json(record: dict[str, Any]) -> str:
    """One line of JSON. Numbers that are not finite, which JSON does not have, become null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()
    }
    return json.dumps(finite, allow_nan=False)


class MetricsWriter:
    """Appends one record a step to ``workdir/metrics.jsonl`` and TensorBoard, and shows the progress on stderr.

    On a terminal that is a progress bar, elsewhere one plain line, with the time of day, for each record.

    Opening it at ``step`` drops the records after that step, which a killed run may have written beyond its last
    checkpoint and is about to write again. At step 0 records with evaluations are kept aside: they may be of a run
    whose checkpoints were removed.
    """

    def __init__(self, workdir: Path, step: int, total_steps: int) -> None:
        # Slow to import, and of no use to a library user. Not its SummaryWriter, whose thread dies where the disk is
        # full and leaves its callers waiting.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self._path = workdir / "metrics.jsonl"
        records = read_metrics(self._path)
        if not step and any(name.startswith(_EVALUATED) for record in records for name in record):
            kept = next(path for number in count(1) if not (path := workdir / f"metrics.{number}.jsonl").exists())
            self._path.rename(kept)
            print(
                f"warning: records of a run whose checkpoints are gone, or not yet there, are kept as {kept}",
                file=sys.stderr,
            )
            records = []
        self._file = self._rewrite([record for record in records if record["step"] <= step])
        (workdir / "tensorboard").mkdir(exist_ok=True)
        self._events = EventsWriter(str(workdir / "tensorboard" / "events"))
        # Hides what an earlier start wrote beyond this step.
        self._add_event(step + 1, session_log=SessionLog(status=SessionLog.START))
        self._total_steps = total_steps
        self._bar: tqdm | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total_steps, initial=step, unit="step", dynamic_ncols=True)
            if step < total_steps:
                self._bar.set_postfix_str("compiling")
        self._compiling = True

    def advance(self, steps: int) -> None:
        """Moves the progress bar on."""
        if self._bar is None:
            return
        if self._compiling:
            self._bar.set_postfix_str("")
            self._compiling = False
        self._bar.update(steps)

    def write(self, record: dict[str, Any]) -> None:
        """Writes a record ({"step": int, name: number, ...}); it is on disk before this returns."""
        self._file.write(to_json(record) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._show(record)

    def amend(self, record: dict[str, Any]) -> None:
        """Adds to the record of its step, which is the last one, as ``write`` does; without one it is written."""
        records = read_metrics(self._path)
        if not records or records[-1]["step"] != record["step"]:
            self.write(record)
            return
        self._file.close()
        self._file = self._rewrite([*records[:-1], records[-1] | record])
        self._show(record)

    def _rewrite(self, records: list[dict[str, Any]]) -> IO[str]:
        with replace_atomically(self._path) as file:
            file.write("".join(to_json(record) + "\n" for record in records).encode())
        return self._path.open("a")

    def _add_event(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._events.write_event(Event(wall_time=time.time(), step=step, **content))

    def _show(self, record: dict[str, Any]) -> None:
        from tensorboardX.summary import scalar

        for name, value in record.items():
            if name != "step":
                self._add_event(record["step"], summary=scalar(name, value))
        self._events.flush()
        if self._bar is None:
            clock = time.strftime("%H:%M:%S")
            print(f"{clock} step {record['step']}/{self._total_steps}: {_summary(record)}", file=sys.stderr, flush=True)
        else:
            self._bar.set_postfix_str(_summary(record))

    def close(self) -> None:
        self._file.close()
        self._events.close()
        if self._bar is not None:
            self._bar.close()


def _summary(record: dict[str, Any]) -> str:
    """A record in a line, as in "train loss 0.125, test error 12.35%, lr 0.1, 800 images/s"."""
    formats = {"learning_rate": "lr {:.3g}", "images_per_second": "{:.0f} images/s"}
    parts = []
    for name, value in record.items():
        if name != "step":
            usual = "{name} {:.2f}%" if name.endswith("_error") else "{name} {:.3f}"
            parts.append(formats.get(name, usual).format(value, name=name.replace("_", " ")))
    return ", ".join(parts)
