"""The results ledger: a small JSON file for each finished run, of which the report and the README's table are made."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnet_jax.errors import UserError, one_line
from resnet_jax.files import replace_atomically

Record = dict[str, Any]


def record_path(results: Path, scale: str, name: str) -> Path:
    """Where the record of a run lies."""
    return results / scale / f"{name}.json"


def read_record(path: Path) -> Record | None:
    """The record of a run; None if there is none. Raises UserError if it is damaged."""
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        missing = [key for key in ("run", "scale", "results", "commands") if key not in record]
        if "members" not in record:
            missing += [key for key in ("network", "config", "seed", "steps", "values", "curves") if key not in record]
        if missing:
            raise ValueError(f"{', '.join(missing)} missing")
        return record
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); remove it, and the run is scored again") from None


def write_record(path: Path, record: Record) -> None:
    """Writes a record whole or not at all, a line a key; what was there is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items())
    with replace_atomically(path) as file:
        file.write(f"{{\n{lines}\n}}\n".encode())


def read_ledger(results: Path, scale: str, is_current: Callable[[Record], bool]) -> dict[str, Record]:
    """The records of a scale by the name of the run, in alphabetical order.

    Those that are damaged, or not ``is_current``, are left out and named on stderr. Ensembles are not asked about.
    """
    found = {}
    for path in sorted((results / scale).glob("*.json")):
        try:
            record = read_record(path)
            if record and ("members" in record or is_current(record)):
                found[path.stem] = record
            else:
                print(f"left out: {path} is of a run with other settings", file=sys.stderr)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
    return found
