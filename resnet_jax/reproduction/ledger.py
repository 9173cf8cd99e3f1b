"""The results ledger: a small JSON file for each finished run, of which the report and the README's table are made."""

import json
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
        if not isinstance(record, dict) or not isinstance(record["results"], dict):
            raise ValueError("it is not a record")
        return record
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); remove it, and the run is scored again") from None


def write_record(path: Path, record: Record) -> None:
    """Writes a record whole or not at all; what was there is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(path) as file:
        file.write((_dump(record) + "\n").encode())


def read_ledger(results: Path, scale: str) -> dict[str, Record]:
    """Every record of a scale by the name of its run, in alphabetical order."""
    records = {path.stem: read_record(path) for path in sorted((results / scale).glob("*.json"))}
    return {name: record for name, record in records.items() if record}


def _dump(record: Record) -> str:
    """JSON with one line a key, and one a key of its dicts, so that curves do not fill the screen."""
    lines = []
    for key, value in record.items():
        if isinstance(value, dict) and value:
            inner = ",\n".join(f"  {json.dumps(name)}: {json.dumps(item)}" for name, item in value.items())
            lines.append(f" {json.dumps(key)}: {{\n{inner}\n }}")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}"
