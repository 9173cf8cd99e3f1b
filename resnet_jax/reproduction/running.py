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

from resnet_jax import recipes
from resnet_jax.analysis.complexity import count_parameters
from resnet_jax.config import flatten, make_model
from resnet_jax.data.digits import write_photographs
from resnet_jax.errors import UserError, one_line
from resnet_jax.reproduction.experiments import EXPERIMENTS, Experiment, Run, command, overrides, recipe, scaled
from resnet_jax.reproduction.ledger import Record, read_record, record_path, write_record
from resnet_jax.train.signals import STOP_SIGNALS, Stopped
from resnet_jax.train.workdir import read_class_names
from resnet_jax.writers import read_metrics

# Where data lie, and how fast they are read, does not change a run.
_NOT_OF_THE_RUN = ("data_dir", "data.threads", "data.workers")


class Places(NamedTuple):
    """Folders: the checkout with train.py and configs/, the workdirs, the ledger, and the prepared data sets."""

    root: Path
    workdirs: Path
    results: Path
    data_dir: Path | None


class Failed(UserError):
    """A program ended with an error, which it has printed."""


def workdir(places: Places, scale: str, run: Run) -> Path:
    """Where a run trains."""
    return places.workdirs / scale / run.name


def perform(name: str, scale: str, runs: list[Run], places: Places) -> dict[str, str]:
    """Makes every record that an experiment needs and that is not there yet.

    Returns what failed, by the name of the run; the others are not lost by it. Raises Stopped after a signal, with the
    run under way saved; the same call then goes on there.
    """
    experiment = EXPERIMENTS[name]
    failures: dict[str, str] = {}
    for number, run in enumerate(runs, start=1):
        heading = f"[{number}/{len(runs)}] {name}, {scale}: {run.name}"
        try:
            _one_run(heading, experiment, scale, run, places)
        except UserError as error:
            print(f"{heading} failed: {error}; going on with the others", file=sys.stderr)
            failures[run.name] = str(error)
    if experiment.ensemble:
        try:
            if failures:
                raise UserError("not all of its members are there")
            _ensemble(name, experiment, scale, runs, places)
        except UserError as error:
            failures[ensemble_name(name)] = str(error)
    return failures


def ensemble_name(experiment: str) -> str:
    """What the record of an experiment's ensemble is called."""
    return f"{experiment}-ensemble"


def lacking(experiment: Experiment, scale: str, run: Run, places: Places) -> tuple[str, Record | None]:
    """What is to be done for a run: "nothing", "score", or "train and score"; and the record that there is.

    Raises UserError if the record is damaged, or of other settings.
    """
    path = record_path(places.results, scale, run.name)
    record = read_record(path)
    if record is None:
        return "train and score", None
    if not is_current(places.root, scale, record):
        raise UserError(f"{path} is of a run with other settings; move it away, or use another --results")
    if experiment.protocol in record["results"] and (not experiment.responses or "responses" in record):
        return "nothing", record
    trained = (workdir(places, scale, run) / "checkpoints" / str(record["steps"])).is_dir()
    return "score" if trained else "train and score", record


def is_current(root: Path, scale: str, record: Record) -> bool:
    """Whether a run's record is of the config that it has at this scale today; newer keys had their defaults."""
    run = Run(record["config"], record["seed"])
    if record["scale"] != scale or not (root / "configs" / f"{run.config}.py").is_file():
        return False
    was = json.loads(json.dumps(flatten(recipes.base()))) | record["values"]
    return all(was.get(key) == value for key, value in _values(root, scale, run).items())


def _values(root: Path, scale: str, run: Run) -> dict[str, Any]:
    """The whole config by dotted key, as JSON has it."""
    flat = flatten(scaled(root, run, scale))
    return json.loads(json.dumps({key: value for key, value in flat.items() if key not in _NOT_OF_THE_RUN}))


def _one_run(heading: str, experiment: Experiment, scale: str, run: Run, places: Places) -> None:
    to_do, before = lacking(experiment, scale, run, places)
    if to_do == "nothing":
        print(f"{heading}: done before", file=sys.stderr)
        return
    folder, settings = workdir(places, scale, run), overrides(places.root, run, scale)
    training = command("train.py", run.config, [folder], settings)
    if to_do == "train and score":
        print(f"{heading}: training in {folder}", file=sys.stderr)
        _call(places, scale, training)
    record = _training_record(scale, run, places, training)
    if before is not None and before["curves"] == record["curves"]:  # The same training, scored otherwise before.
        record = before
    print(f"{heading}: scoring", file=sys.stderr)
    scoring = [*command("eval.py", run.config, [folder], settings), f"--protocol={experiment.protocol}"]
    measured = folder / "responses.csv"
    if experiment.responses:
        scoring.append(f"--responses_csv={measured}")
    result = _result(_call(places, scale, scoring))
    if result["step"] != record["steps"]:
        raise UserError(f"{folder} is at step {result['step']} of {record['steps']}; run the same command again")
    record["results"][experiment.protocol] = result
    record["commands"][experiment.protocol] = _shown(places, scale, scoring)
    if experiment.responses:
        rows = [line.split(",") for line in measured.read_text().splitlines()[1:]]
        record["responses"] = {layer: float(deviation) for _, layer, deviation, _ in rows}
    write_record(record_path(places.results, scale, run.name), record)


def _ensemble(name: str, experiment: Experiment, scale: str, runs: list[Run], places: Places) -> None:
    path = record_path(places.results, scale, ensemble_name(name))
    alone = {run.name: read_record(record_path(places.results, scale, run.name)) for run in runs}
    # The losses tell whether a member has been trained anew since.
    members = {member: record["results"][experiment.protocol]["loss"] for member, record in alone.items() if record}
    before = read_record(path)
    if before is not None and before.get("members") == members:
        print(f"{name}, {scale}: the ensemble was scored before", file=sys.stderr)
        return
    folders = [workdir(places, scale, run) for run in runs]
    settings = overrides(places.root, runs[0], scale)  # Of them the data's are read, which all members share.
    scoring = [*command("eval.py", runs[0].config, folders, settings), f"--protocol={experiment.protocol}"]
    print(f"{name}, {scale}: scoring the ensemble", file=sys.stderr)
    result = _result(_call(places, scale, scoring))
    record: Record = {"run": ensemble_name(name), "scale": scale, "members": members}
    record["commands"] = {experiment.protocol: _shown(places, scale, scoring)}
    write_record(path, record | {"results": {experiment.protocol: result}})


def _result(printed: str) -> Record:
    result = json.loads(printed.splitlines()[-1])
    return {key: result[key] for key in ("split", "num_examples", "top1_error", "top5_error", "loss", "step")}


def _training_record(scale: str, run: Run, places: Places, training: list[str]) -> Record:
    """All that the workdir of a finished run says, but for the scores. Raises UserError if it is damaged."""
    folder = workdir(places, scale, run)
    config = scaled(places.root, run, scale)
    metrics = read_metrics(folder / "metrics.jsonl")
    class_names = read_class_names(folder)
    evaluated = "test_error" if any("test_error" in row for row in metrics) else "validation_error"
    try:
        environment = json.loads((folder / "environment.json").read_text())
        return {
            "run": run.name,
            "network": run.network,
            "config": run.config,
            "seed": run.seed,
            "scale": scale,
            "steps": config.steps,
            "recipe_steps": recipe(places.root, run).steps,
            "parameters": count_parameters(make_model(config, len(class_names))),
            "images_per_second": statistics.median(row["images_per_second"] for row in metrics),
            "environment": {
                key: environment.get(key) for key in ("commit", "devices", "processor", "python", "packages")
            },
            "values": _values(places.root, scale, run),
            "commands": {"training": _shown(places, scale, training)},
            "results": {},
            "curves": {
                "train": [[row["step"], row["train_error"]] for row in metrics],
                "test": [[row["step"], row[evaluated]] for row in metrics if evaluated in row],
            },
        }
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} is damaged ({one_line(error)}); remove it, and the run is trained again") from None


def _call(places: Places, scale: str, arguments: list[str]) -> str:
    """Runs train.py or eval.py, with its progress on our stderr; returns what it printed on stdout.

    Raises Failed if it ends with an error, and Stopped if a signal, which is passed on, ended it or us.
    """
    program, flag, config, *rest = arguments
    data_dir = _data_dir(places, scale, arguments)
    if data_dir is not None and scale == "smoke":
        write_photographs(data_dir)
    if data_dir:
        rest.append(f"--config.data_dir={data_dir}")
    whole = [sys.executable, str(places.root / program), flag, str(places.root / config), *rest]
    with _passing_on_signals() as (received, children):
        # A session of its own: Ctrl-C in a terminal would else reach it twice, from the terminal and from us.
        child = subprocess.Popen(whole, stdout=subprocess.PIPE, text=True, start_new_session=True)
        children.append(child)
        if received:  # Before there was a child to pass it on to.
            child.send_signal(signal.SIGTERM)
        output, _ = child.communicate()
    stopped = [*received, *(signum for signum in STOP_SIGNALS if child.returncode in (128 + signum, -signum))]
    if stopped:
        raise Stopped(stopped[0])
    if child.returncode:
        raise Failed(f"{program} ended with status {child.returncode}; its message is above")
    return output


def _data_dir(places: Places, scale: str, arguments: list[str]) -> Path | None:
    """Where a program finds its data. At smoke scale they are digits, which stand for photographs, too."""
    if scale != "smoke":
        return places.data_dir
    return places.workdirs / scale / "photographs" if "--config.data.name=folder" in arguments else None


def _shown(places: Places, scale: str, arguments: list[str]) -> str:
    """A command as one would type it beside train.py: no absolute paths, and DIR for the folder of the data."""
    folder = str(places.workdirs)
    typed = [argument.replace(folder, "runs") for argument in arguments] if folder.startswith("/") else arguments
    text = shlex.join(["python", *typed])
    if places.data_dir or _data_dir(places, scale, arguments):
        text += " --config.data_dir=DIR"
    return text


@contextmanager
def _passing_on_signals() -> Iterator[tuple[list[int], list[subprocess.Popen]]]:
    """The signals that arrive, and the processes that they are passed on to. A lost terminal stops them, too."""
    received: list[int] = []
    children: list[subprocess.Popen] = []

    def pass_on(signum: int, _: Any) -> None:
        received.append(signum)
        for child in children:
            child.send_signal(signal.SIGTERM if signum == signal.SIGHUP else signum)

    before = {signum: signal.signal(signum, pass_on) for signum in (*STOP_SIGNALS, signal.SIGHUP)}
    try:
        yield received, children
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
