"""Trains and scores what an experiment lacks: train.py and eval.py, one process after the other, or several at a time.

Each has a process of its own so that one which fails, in whatever way, loses nothing but itself.
"""

import json
import math
import os
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from reproduction.experiments import (
    EXPERIMENTS,
    Experiment,
    Run,
    command,
    overrides,
    recipe,
    recipe_steps,
    scaled,
)
from reproduction.ledger import Record, read_record, record_path, write_record
from reproduction.numerics import numerics_hash
from resnet_jax.analysis.complexity import count_parameters
from resnet_jax.build import make_model
from resnet_jax.config import Config, checked, flatten
from resnet_jax.data.sources.digits import write_photographs
from resnet_jax.errors import UserError, one_line
from resnet_jax.train.signals import STOP_SIGNALS, Stopped
from resnet_jax.train.workdir import read_class_names
from resnet_jax.train.writers import read_metrics

# Where data lie and how fast they are read does not change a run; how many steps are in a call, no more than rounding.
_NOT_OF_THE_RUN = ("data_dir", "data.threads", "data.workers", "steps_per_dispatch")
_CODE = "numerics.txt"  # In a workdir: the hashes of the code that has trained there, a line each.


class Places(NamedTuple):
    """Folders: the checkout with train.py and configs/, the workdirs, the ledger, and the prepared data sets.

    steps_per_dispatch: of the trainings here; None: each config's own.
    """

    root: Path
    workdirs: Path
    results: Path
    data_dir: Path | None
    steps_per_dispatch: int | None = None


Call: TypeAlias = Callable[[list[str]], str]  # Runs a program of these arguments; returns what it printed on stdout.


class Failed(UserError):
    """A program ended with an error, which it has printed."""


def workdir(places: Places, scale: str, run: Run) -> Path:
    """Where a run trains."""
    return places.workdirs / scale / run.name


def perform(name: str, scale: str, runs: list[Run], places: Places, jobs: int = 1) -> dict[str, str]:
    """Makes every record that an experiment needs and that is not there yet, ``jobs`` runs at a time.

    Returns what failed, by the name of the run; the others are not lost by it. Raises Stopped after a signal, with the
    runs under way saved; the same call then resumes there.
    """
    experiment = EXPERIMENTS[name]
    _check_dispatch(scale, runs, places)
    failures: dict[str, str] = {}
    photographs = _photographs(places, scale)
    if photographs and any("data.crop_size" in values(scaled(places.root, run, scale)) for run in runs):
        write_photographs(photographs)
    numerics_hash(places.root)  # Cached for the threads below: Python 3.11 cannot parse in several at a time.
    with passing_on_signals() as (received, children):
        call = partial(run_program, places, scale, received, children)

        def attempt(number: int, run: Run) -> None:
            heading = f"[{number}/{len(runs)}] {name}, {scale}: {run.name}"
            if received:
                raise Stopped(received[0])
            try:
                _one_run(call, heading, experiment, scale, run, places)
            except UserError as error:
                print(f"{heading} failed: {error}; going on with the others", file=sys.stderr)
                failures[run.name] = str(error)

        with ThreadPoolExecutor(jobs) as pool:
            for attempted in [pool.submit(attempt, number, run) for number, run in enumerate(runs, start=1)]:
                attempted.result()
        if experiment.ensemble:
            try:
                if failures:
                    raise UserError("not all of its members are there")
                _ensemble(call, name, experiment, scale, runs, places)
            except UserError as error:
                failures[ensemble_name(name)] = str(error)
    return failures


def _check_dispatch(scale: str, runs: list[Run], places: Places) -> None:
    """Raises UserError unless places.steps_per_dispatch divides all intervals of the runs."""
    if places.steps_per_dispatch is None:
        return
    for run in runs:
        config = scaled(places.root, run, scale)
        intervals = (config.steps, config.log_every, config.eval_every, config.checkpoint_every)
        most = math.gcd(*(interval for interval in intervals if isinstance(interval, int)))
        if most % places.steps_per_dispatch:
            raise UserError(
                f"--steps_per_dispatch={places.steps_per_dispatch} does not divide all intervals of {run.name} at "
                f"{scale} scale; give {most}, or a divisor of it"
            )


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
    """Whether a run's record is of the config that it has at this scale today."""
    run = run_of(record)
    try:
        return record["scale"] == scale and has_values(record, scaled(root, run, scale))
    except (UserError, KeyError):  # The config has gone, or a key of it.
        return False


def run_of(record: Record) -> Run:
    """The run that a record is of."""
    file, _, network = record["config"].partition(":")
    return Run(Path(file).stem, network, record["seed"])


def has_values(record: Record, config: Config) -> bool:
    """Whether a record is of a config; newer keys had their defaults. Raises UserError where a key has gone."""
    return values(checked(_nested(record["values"]))) == values(config)


def values(config: Config) -> dict[str, Any]:
    """The whole config by dotted key, as JSON has it, but for what does not change a run."""
    return json.loads(json.dumps({k: v for k, v in flatten(config).items() if k not in _NOT_OF_THE_RUN}))


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, leaf = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = value
    return nested


def _one_run(call: Call, heading: str, experiment: Experiment, scale: str, run: Run, places: Places) -> None:
    to_do, before = lacking(experiment, scale, run, places)
    if to_do == "nothing":
        print(f"{heading}: done before", file=sys.stderr)
        return
    folder, settings = workdir(places, scale, run), overrides(places.root, run, scale)
    dispatched = {"steps_per_dispatch": places.steps_per_dispatch} if places.steps_per_dispatch else {}
    training = command("train.py", run, [folder], settings | dispatched)
    if to_do == "train and score":
        print(f"{heading}: training in {folder}", file=sys.stderr)
        note_code(places.root, folder)
        call(training)
    record = _training_record(scale, run, places, training)
    if before is not None and before["curves"] == record["curves"]:  # The same training, scored otherwise before.
        record = before
    print(f"{heading}: scoring", file=sys.stderr)
    scoring = [*command("eval.py", run, [folder], settings), f"--protocol={experiment.protocol}"]
    measured = folder / "responses.csv"
    if experiment.responses:
        scoring.append(f"--responses_csv={measured}")
    result = _result(places.root, call(scoring))
    if result["step"] != record["steps"]:
        raise UserError(f"{folder} is at step {result['step']} of {record['steps']}; run the same command again")
    record["results"][experiment.protocol] = result
    record["commands"][experiment.protocol] = shown(places, scale, scoring)
    if experiment.responses:
        rows = [line.split(",") for line in measured.read_text().splitlines()[1:]]
        record["responses"] = {layer: float(deviation) for _, layer, deviation, _ in rows}
    write_record(record_path(places.results, scale, run.name), record)


def _ensemble(call: Call, name: str, experiment: Experiment, scale: str, runs: list[Run], places: Places) -> None:
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
    scoring = [*command("eval.py", runs[0], folders, settings), f"--protocol={experiment.protocol}"]
    print(f"{name}, {scale}: scoring the ensemble", file=sys.stderr)
    result = _result(places.root, call(scoring))
    record: Record = {"kind": "ensemble", "run": ensemble_name(name), "scale": scale, "members": members}
    record["commands"] = {experiment.protocol: shown(places, scale, scoring)}
    write_record(path, record | {"results": {experiment.protocol: result}})


def _result(root: Path, printed: str) -> Record:
    """The last line of eval.py, and the code that it is of."""
    result = json.loads(printed.splitlines()[-1])
    keys = ("split", "num_examples", "top1_error", "top5_error", "loss", "step")
    return {key: result[key] for key in keys if key in result} | {"numerics": numerics_hash(root)}


def note_code(root: Path, folder: Path) -> None:
    """Adds today's code to that which trained in ``folder``, before it does."""
    code, noted = numerics_hash(root), noted_code(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if code not in noted:
        (folder / _CODE).write_text("".join(f"{line}\n" for line in [*noted, code]))


def noted_code(folder: Path) -> list[str]:
    """The hashes of the code that has trained in ``folder``."""
    path = folder / _CODE
    return path.read_text().split() if path.exists() else []


def environment(folder: Path) -> Record:
    """What a workdir says of the machine and the versions it was trained with. Raises OSError or ValueError."""
    written = json.loads((folder / "environment.json").read_text())
    return {key: written.get(key) for key in ("commit", "devices", "processor", "python", "packages")}


def _training_record(scale: str, run: Run, places: Places, training: list[str]) -> Record:
    """All that the workdir of a finished run says, but for the scores. Raises UserError if it is damaged."""
    folder = workdir(places, scale, run)
    config = scaled(places.root, run, scale)
    metrics = read_metrics(folder / "metrics.jsonl")
    class_names = read_class_names(folder)
    evaluated = "test_error" if any("test_error" in row for row in metrics) else "validation_error"
    try:
        return {
            "kind": "run",
            "run": run.name,
            "network": run.network,
            "config": run.config,
            "seed": run.seed,
            "scale": scale,
            "steps": recipe_steps(config),
            "recipe_steps": recipe_steps(recipe(places.root, run)),
            "parameters": _parameters(make_model(config, len(class_names))),
            "images_per_second": statistics.median(row["images_per_second"] for row in metrics),
            "environment": environment(folder),
            "numerics": noted_code(folder),
            "values": values(config),
            "commands": {"training": shown(places, scale, training)},
            "results": {},
            "learning_rates": _changes([[row["step"], row["learning_rate"]] for row in metrics]),
            "curves": {
                "train": [[row["step"], row["train_error"]] for row in metrics],
                "test": [[row["step"], row[evaluated]] for row in metrics if evaluated in row],
            },
        }
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} is damaged ({one_line(error)}); remove it, and the run is trained again") from None


def _changes(rates: list[list[float]]) -> list[list[float]]:
    """The logged steps at which the learning rate was another than before, with it."""
    return rates[:1] + [now for before, now in pairwise(rates) if before[1] != now[1]]


_parameters = cache(count_parameters)  # Seeds of a network have the same.


def run_program(
    places: Places, scale: str, received: list[int], children: list[subprocess.Popen], arguments: list[str]
) -> str:
    """Runs train.py or eval.py, with its progress on our stderr; returns what it printed on stdout.

    ``received`` and ``children`` are those of ``passing_on_signals``. Raises Failed if it ends with an error, and
    Stopped if a signal ended it, or came before.
    """
    program, flag, config, *rest = arguments
    data_dir = _data_dir(places, scale, arguments)
    if data_dir:
        rest.append(f"--config.data_dir={data_dir}")
    whole = [sys.executable, str(places.root / program), flag, str(places.root / config), *rest]
    environment = dict(os.environ)
    if scale == "smoke":  # Compiled programs, small as they are, are kept for the other runs: most are the same.
        environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    # A session of its own: Ctrl-C in a terminal would else reach it twice, from the terminal and from us.
    child = subprocess.Popen(whole, stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment)
    children.append(child)
    if received:  # Before there was a child to pass it on to.
        child.send_signal(signal.SIGTERM)
    output, _ = child.communicate()
    children.remove(child)
    received += [signum for signum in STOP_SIGNALS if child.returncode in (128 + signum, -signum)]
    if received:
        raise Stopped(received[0])
    if child.returncode:
        raise Failed(f"{program} ended with status {child.returncode}; its message is above")
    return output


def _photographs(places: Places, scale: str) -> Path | None:
    """The folder of the digits that stand for photographs at smoke scale."""
    return places.workdirs / scale / "photographs" if scale == "smoke" else None


def _data_dir(places: Places, scale: str, arguments: list[str]) -> Path | None:
    """Where a program finds its data."""
    if scale != "smoke":
        return places.data_dir
    return _photographs(places, scale) if "--config.data.name=folder" in arguments else None


def shown(places: Places, scale: str, arguments: list[str]) -> str:
    """A command as one would type it beside train.py: no absolute paths, and DIR for the folder of the data."""
    folder = str(places.workdirs)
    typed = [argument.replace(folder, "runs") for argument in arguments] if folder.startswith("/") else arguments
    text = shlex.join(["python", *typed])
    if places.data_dir or _data_dir(places, scale, arguments):
        text += " --config.data_dir=DIR"
    return text


@contextmanager
def passing_on_signals() -> Iterator[tuple[list[int], list[subprocess.Popen]]]:
    """The signals that arrive, and the processes that they are passed on to. A lost terminal stops them, too."""
    received: list[int] = []
    children: list[subprocess.Popen] = []

    def pass_on(signum: int, _: Any) -> None:
        received.append(signum)
        for child in list(children):
            child.send_signal(signal.SIGTERM if signum == signal.SIGHUP else signum)

    before = {signum: signal.signal(signum, pass_on) for signum in (*STOP_SIGNALS, signal.SIGHUP)}
    try:
        yield received, children
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
