"""The results ledger: small JSON files, of which the report, the README's tables and its speeds are made.

A record is of a kind: a "run" trained and scored, an "ensemble" of runs, a row of a table of "detection", a "score" of
given weights (a line of eval.py) or a "benchmark" (what ``benchmarks.run --out`` writes). The first three lie in
RESULTS/SCALE, the others in RESULTS/scores and RESULTS/benchmarks.
"""

import json
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from resnet_jax.errors import UserError, one_line
from resnet_jax.files import replace_atomically

Record = dict[str, Any]

# The keys of each kind that are read. ``numerics`` are hashes of ``numerics.numerics_hash``.
_KEYS = {
    "run": (
        *("run", "scale", "network", "config", "seed", "steps", "recipe_steps", "values", "curves"),
        *("parameters", "images_per_second", "results", "commands", "environment", "numerics"),
    ),
    "detection": ("run", "scale", "title", "steps", "values", "commands", "result", "environment", "numerics"),
    "ensemble": ("run", "scale", "members", "results", "commands"),
    "score": ("name", "title", "command", "commit", "numerics", "result"),
    "benchmark": ("name", "command", "commit", "numerics", "environment", "comparisons"),
}
FOLDERS = {"score": "scores", "benchmark": "benchmarks"}

_NEITHER = (
    "this is neither a line of eval.py that has a top-1 error nor speeds of benchmarks.run --out; give the file of one "
    "of them"
)


def record_path(results: Path, scale: str, name: str) -> Path:
    """Where a record lies: of a run and an ensemble by their scale, of the others by ``FOLDERS``."""
    return results / scale / f"{name}.json"


def read_record(path: Path) -> Record | None:
    """The record of a file; None if there is none. Raises UserError if it is damaged."""
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        missing = [key for key in ("kind", *_KEYS[record["kind"]]) if key not in record]
        if missing:
            raise ValueError(f"{', '.join(missing)} missing")
        return record
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); remove it, and make it again") from None


def write_record(path: Path, record: Record) -> None:
    """Writes a record atomically, a line a key; what was there is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items())
    with replace_atomically(path) as file:
        file.write(f"{{\n{lines}\n}}\n".encode())


def read_ledger(results: Path, scale: str, is_current: Callable[[Record], bool]) -> dict[str, Record]:
    """The records of a scale by the name of the run, in alphabetical order.

    Those that are damaged, or not ``is_current``, are left out and named on stderr.
    """
    found = {}
    for path in sorted((results / scale).glob("*.json")):
        try:
            record = read_record(path)
            if record and is_current(record):
                found[path.stem] = record
            else:
                print(f"left out: {path} is of a run with other settings", file=sys.stderr)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
    return found


def imported(
    name: str, printed: Mapping[str, Any], command: str, title: str, commit: str | None, numerics: str
) -> Record:
    """The "score" of a line that eval.py printed, or the "benchmark" of a file that benchmarks.run wrote.

    Raises UserError for anything else, and for a benchmark at toy size.
    """
    if not isinstance(printed, Mapping) or not isinstance(printed.get("images_per_second", {}), Mapping):
        raise UserError(_NEITHER)
    common = {"name": name, "command": command, "commit": commit, "numerics": [numerics]}
    if "top1_error" in printed:
        return {"kind": "score", **common, "title": title, "result": dict(printed)}
    if "images_per_second" not in printed:
        raise UserError(_NEITHER)
    if printed.get("smoke"):
        raise UserError("this benchmark was made with --smoke, and its figures mean nothing; make it without")
    speeds: Record = printed["images_per_second"]
    more: Record = {}
    if printed.get("suite") == "input":  # Of each program its last line, where the speeds are a level further down.
        more = {"disk_kB": speeds["input_pipeline"].get("disk_kB", {})}
        speeds = {f"{name}, {line.get('title', '')}": line["images_per_second"] for name, line in speeds.items()}
    comparisons = {comparison: _summary(comparison, sides) for comparison, sides in speeds.items()}
    record = {"kind": "benchmark", **common, **more, "environment": printed.get("environment", {})}
    return record | {"comparisons": comparisons}


def _summary(title: str, sides: Mapping[str, list[float]]) -> Record:
    """Medians and ranges of sides that were measured in turn, round after round, and what ours is beside others.

    "ratio" (to the reference) and "beside" are medians of each round's ratios.
    """
    reference = next((name for name in ("PyTorch", "tf.data") if name in sides), next(iter(sides)))
    found: Record = {"reference": reference, "rounds": len(sides[reference]), "sides": {}}
    for name, values in sides.items():
        summary = {"median": statistics.median(values), "min": min(values), "max": max(values)}
        found["sides"][name] = summary | {"ratio": _ratio(values, sides[reference])}
    if "ours" in sides:
        found["beside"] = {
            other: _ratio(sides["ours"], list(map(max, zip(*(sides[name] for name in names), strict=True))))
            for other, names in _others(title, list(sides)).items()
        }
    if {"bare step", "bare loader", "whole trainer"} <= sides.keys():
        slower = list(map(min, zip(sides["bare step"], sides["bare loader"], strict=True)))
        found["trainer_share"] = _ratio(sides["whole trainer"], slower)
    return found


def _others(title: str, sides: list[str]) -> dict[str, list[str]]:
    """What ours is compared with, in words, and of which sides that is the fastest in each round."""
    torch = [name for name in sides if name.startswith("PyTorch")]
    installed = [name for name in torch if "memory kept" not in name]
    eager = title.startswith("training, ") and not any("compiled" in name for name in installed)
    found = {"PyTorch, which was not compiled" if eager else "the fastest PyTorch as installed": installed}
    if torch != installed:
        found["the fastest PyTorch given the same malloc setting"] = torch
    found["naive Flax"] = [name for name in sides if name == "naive Flax"]
    return {other: names for other, names in found.items() if names}


def _ratio(values: list[float], others: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(values, others, strict=True))
