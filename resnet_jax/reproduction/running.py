"""Trains and scores what an experiment lacks: train.py and eval.py, one process after the other.

Each has a process of its own so that one which fails, whatever the way, loses nothing but itself.
"""

import json
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from resnet_jax.analysis.complexity import count_parameters
from resnet_jax.config import make_model
from resnet_jax.data.digits import write_photographs
from resnet_jax.errors import UserError
from resnet_jax.reproduction.experiments import EXPERIMENTS, Experiment, Run, command, overrides, recipe, scaled
from resnet_jax.reproduction.ledger import Record, read_record, record_path, write_record
from resnet_jax.train.signals import STOP_SIGNALS, Stopped
from resnet_jax.train.workdir import processor_name
from resnet_jax.writers import read_metrics


class Places(NamedTuple):
    """Folders: the checkout with train.py and configs/, the workdirs, the ledger, and the prepared data sets."""

    root: Path
    workdirs: Path
    results: Path
    data_dir: Path | None


class Failed(Exception):
    """A program that ended with an error, which it has printed."""


def workdir(places: Places, scale: str, run: Run) -> Path:
    """Where a run trains."""
    return places.workdirs / scale / run.name


def perform(name: str, scale: str, runs: list[Run], places: Places) -> dict[str, str]:
    """Makes every record that an experiment needs and that is not there yet.

    Returns what failed, by the name of the run; the others are not lost by it. Raises Stopped after SIGTERM or SIGINT,
    with the run under way saved; the same call then goes on there.
    """
    experiment = EXPERIMENTS[name]
    failures: dict[str, str] = {}
    for number, run in enumerate(runs, start=1):
        heading = f"[{number}/{len(runs)}] {name}, {scale}: {run.name}"
        try:
            _one_run(heading, experiment, scale, run, places)
        except (Failed, UserError) as error:
            print(f"{heading} failed: {error}; going on with the others", file=sys.stderr)
            failures[run.name] = str(error)
    if experiment.ensemble:
        if failures:
            failures[ensemble_name(name)] = "not all of its members are there"
        else:
            _ensemble(name, experiment, scale, runs, places)
    return failures


def ensemble_name(experiment: str) -> str:
    """What the record of an experiment's ensemble is called."""
    return f"{experiment}-ensemble"


def scored(experiment: Experiment, record: Record) -> bool:
    """Whether a record has all that the experiment asks of its runs."""
    return experiment.protocol in record["results"] and (not experiment.responses or "responses" in record)


def _one_run(heading: str, experiment: Experiment, scale: str, run: Run, places: Places) -> None:
    path = record_path(places.results, scale, run.name)
    record = read_record(path)
    settings = overrides(places.root, run, scale)
    stored = json.loads(json.dumps(settings))  # Tuples become lists, as in the file.
    if record is not None and record.get("overrides") != stored:
        raise UserError(f"{path} is of a run with other settings; move it away, or use another --results")
    if record is not None and scored(experiment, record):
        print(f"{heading}: done before", file=sys.stderr)
        return
    folder = workdir(places, scale, run)
    training = command("train.py", run.config, [folder], settings)
    if record is None or not (folder / "checkpoints").is_dir():
        print(f"{heading}: training in {folder}", file=sys.stderr)
        _call(places, scale, training)
        record = _training_record(scale, run, places, training)
    print(f"{heading}: scoring", file=sys.stderr)
    scoring = [*command("eval.py", run.config, [folder], settings), f"--protocol={experiment.protocol}"]
    measured = folder / "responses.csv"
    if experiment.responses:
        scoring.append(f"--responses_csv={measured}")
    result = json.loads(_call(places, scale, scoring).splitlines()[-1])
    record["results"][experiment.protocol] = _errors(result)
    record["commands"][experiment.protocol] = _shown(scoring)
    if experiment.responses:
        rows = [line.split(",") for line in measured.read_text().splitlines()[1:]]
        record["responses"] = {layer: float(deviation) for _, layer, deviation, _ in rows}
    write_record(path, record)


def _ensemble(name: str, experiment: Experiment, scale: str, runs: list[Run], places: Places) -> None:
    path = record_path(places.results, scale, ensemble_name(name))
    members = [run.name for run in runs]
    record = read_record(path)
    if record is not None and record.get("members") == members:
        print(f"{name}, {scale}: the ensemble was scored before", file=sys.stderr)
        return
    folders = [workdir(places, scale, run) for run in runs]
    settings = overrides(places.root, runs[0], scale)  # Of them the data's are read, which all members share.
    scoring = [*command("eval.py", runs[0].config, folders, settings), f"--protocol={experiment.protocol}"]
    print(f"{name}, {scale}: scoring the ensemble", file=sys.stderr)
    result = json.loads(_call(places, scale, scoring).splitlines()[-1])
    record = {"run": ensemble_name(name), "scale": scale, "members": members, "overrides": {}}
    record |= {"commands": {experiment.protocol: _shown(scoring)}, "results": {experiment.protocol: _errors(result)}}
    write_record(path, record)


def _errors(result: Record) -> Record:
    return {key: result[key] for key in ("split", "num_examples", "top1_error", "top5_error", "loss", "step")}


def _training_record(scale: str, run: Run, places: Places, training: list[str]) -> Record:
    """All that the workdir of a finished run says, but for the scores."""
    folder = workdir(places, scale, run)
    config = scaled(places.root, run, scale)
    metrics = read_metrics(folder / "metrics.jsonl")
    environment = json.loads((folder / "environment.json").read_text())
    class_names = json.loads((folder / "class_names.json").read_text())
    evaluated = "test_error" if any("test_error" in row for row in metrics) else "validation_error"
    return {
        "run": run.name,
        "network": run.network,
        "config": run.config,
        "seed": run.seed,
        "scale": scale,
        "steps": config.steps,
        "recipe_steps": recipe(places.root, run).steps,
        "overrides": overrides(places.root, run, scale),
        "parameters": count_parameters(make_model(config, len(class_names))),
        "images_per_second": statistics.median(row["images_per_second"] for row in metrics),
        "environment": {key: environment[key] for key in ("commit", "devices", "python", "packages")}
        | {"processor": processor_name()},
        "commands": {"training": _shown(training)},
        "results": {},
        "curves": {
            "train": [[row["step"], row["train_error"]] for row in metrics],
            "test": [[row["step"], row[evaluated]] for row in metrics if evaluated in row],
        },
    }


def _shown(arguments: list[str]) -> str:
    return shlex.join(["python", *arguments])


def _call(places: Places, scale: str, arguments: list[str]) -> str:
    """Runs train.py or eval.py, with its progress on our stderr; returns what it printed on stdout.

    Raises Failed if it ends with an error, and Stopped if a signal, which is passed on, ended it or us.
    """
    program, *rest = arguments
    data_dir = places.data_dir
    if scale == "smoke":
        data_dir = None
        if "--config.data.name=folder" in rest:
            data_dir = places.workdirs / scale / "photographs"
            write_photographs(data_dir)
    if data_dir:
        rest = [*rest, f"--config.data_dir={data_dir.resolve()}"]
    flag, config, *rest = rest
    whole = [sys.executable, str(places.root / program), flag, str(places.root / config), *rest]
    # A session of its own: Ctrl-C in a terminal would else reach it twice, from the terminal and from us.
    child = subprocess.Popen(whole, stdout=subprocess.PIPE, text=True, start_new_session=True)
    with _passing_on_signals(child) as received:
        output, _ = child.communicate()
    if received:
        raise Stopped(received[0])
    if child.returncode:
        raise Failed(f"{program} ended with status {child.returncode}; see above")
    return output


@contextmanager
def _passing_on_signals(child: subprocess.Popen) -> Iterator[list[int]]:
    received: list[int] = []

    def pass_on(signum: int, _: Any) -> None:
        received.append(signum)
        child.send_signal(signum)

    before = {signum: signal.signal(signum, pass_on) for signum in STOP_SIGNALS}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
