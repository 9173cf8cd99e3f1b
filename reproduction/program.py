"""Reproduces the paper: python reproduce.py EXPERIMENT --scale smoke|small|medium|paper, or table1, report or record.

EXPERIMENT is a table or figure: table2 to table14, fig1, fig4, fig6, fig7; or ingredients, which is not of the paper.
The detectors of table7 to table13 start from the networks of table3, which are to be trained at the same scale before,
or from VGG-16; the error says how to train what is missing. What is scored on VOC 2012 test, the R-CNN of table13 and
the ensembles of table14 are not run from here, and the paper's numbers are shown.
What has been trained and scored before is kept; what was interrupted goes on. --dry_run prints the plan and what it
costs.

report makes RESULTS/SCALE/report.html, by default of every scale that there are results of; with --documents it writes
the tables, sentences and speeds of README.md and docs/, too. record NAME --file=FILE --command=COMMAND adds a line that
eval.py printed (with --title) or a file of benchmarks.run --out to the results.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the program at once, without a traceback from some import.

import json
import sys
from pathlib import Path

import jax
from absl import flags

from reproduction import cost, detection, experiments, report, running, sections
from reproduction.document import to_markdown
from reproduction.ledger import FOLDERS, imported, record_path, write_record
from reproduction.numerics import commit, numerics_hash
from resnet_jax.errors import UserError
from resnet_jax.files import expanded
from resnet_jax.programs import cli

flags.adopt_module_key_flags(cli)
ROOT = Path(__file__).resolve().parent.parent

SCALE = flags.DEFINE_enum("scale", None, list(experiments.SCALES), "How much of the paper's work is done.")
SEEDS = flags.DEFINE_integer(
    "seeds", None, "Runs of each network; default 5 of table6's, 2 of ingredients', else 1.", 1
)
NETWORKS = flags.DEFINE_list("networks", None, "Only these networks of the experiment, such as plain20,plain56.")
JOBS = flags.DEFINE_integer(
    "jobs", None, "Runs at a time, each in a process of its own; default 1, and 2 of smoke's.", 1
)
RUNS = flags.DEFINE_string("runs", "runs", "Folder of the workdirs: RUNS/SCALE/NETWORK-seedSEED.")
RESULTS = flags.DEFINE_string("results", "results", "Folder of the ledger and the report: RESULTS/SCALE.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Prepared data sets; default $TFDS_DATA_DIR, then TFDS's own.")
STEPS_PER_DISPATCH = flags.DEFINE_integer(
    "steps_per_dispatch", None, "Steps in one call of the compiled step; more hide the host's latency on a GPU.", 1
)
DOCUMENTS = flags.DEFINE_bool(
    "documents", False, "Write the generated blocks of README.md and docs/, between their marks."
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan and its cost, and do nothing.")
FILE = flags.DEFINE_string("file", None, "Of record: the last line that eval.py printed, or what benchmarks.run wrote.")
COMMAND = flags.DEFINE_string("command", None, "Of record: the command that made the file.")
TITLE = flags.DEFINE_string("title", None, "Of record: what was scored.")


def run(arguments: list[str]) -> None:
    name = arguments[0] if arguments else ""
    known = (*experiments.EXPERIMENTS, *detection.TABLES, "report", "record")
    if name not in known or len(arguments) != (2 if name == "record" else 1):
        raise UserError(f"name one of {', '.join(known[:-1])} and record NAME, not {' '.join(arguments)!r}")
    results = expanded(RESULTS.value)
    if name == "table1":
        print(to_markdown(sections.table1()))
    elif name == "record":
        _record(results, arguments[1])
    elif name == "report":
        if DRY_RUN.value:
            raise UserError("report trains nothing; leave --dry_run out")
        found = [scale for scale in experiments.SCALES if report.has_records(ROOT, results, scale)]
        wanted = [SCALE.value] if SCALE.value else found
        if not set(wanted) <= set(found) or not (found or DOCUMENTS.value):
            raise UserError(
                f"there are no results of the paper's experiments at {SCALE.value or 'any'} scale in {results}; "
                f"correct --results, or run an experiment"
            )
        for scale in wanted:
            print(f"the report is {report.write_report(ROOT, results, scale)}", file=sys.stderr)
        if DOCUMENTS.value:
            report.update_documents(ROOT, results)
    else:
        _experiment(name, results)


def _experiment(name: str, results: Path) -> None:
    scale = SCALE.value
    if not scale:
        raise UserError(f"--scale is missing; give one of {', '.join(experiments.SCALES)}")
    detects = name in detection.TABLES
    if detects and (SEEDS.value or NETWORKS.value or DRY_RUN.value or STEPS_PER_DISPATCH.value or JOBS.value):
        raise UserError(
            f"{name} has rows instead of networks, made one after the other, and neither a plan nor several steps in a "
            "call; leave --seeds, --networks, --jobs, --dry_run and --steps_per_dispatch out"
        )
    runs = [] if detects else experiments.runs(name, scale, SEEDS.value, NETWORKS.value)
    data_dir = expanded(DATA_DIR.value) if DATA_DIR.value else None
    places = running.Places(ROOT, expanded(RUNS.value), results, data_dir, STEPS_PER_DISPATCH.value)
    if DRY_RUN.value:
        print(cost.plan(name, scale, runs, places))
        return
    jax.config.update("jax_platforms", "cpu")  # The accelerator's memory is for the programs that train and score.
    if detects:
        failures = detection.perform(name, scale, places)
    else:
        failures = running.perform(name, scale, runs, places, JOBS.value or (2 if scale == "smoke" else 1))
    print(to_markdown(report.one_section(ROOT, results, scale, name)))
    if DOCUMENTS.value:
        report.update_documents(ROOT, results)
    if detects or experiments.EXPERIMENTS[name].of_paper:
        print(f"the report is {report.write_report(ROOT, results, scale)}", file=sys.stderr)
    if failures:
        raise UserError(
            f"{len(failures)} runs failed: {', '.join(failures)}; their messages are above; fix them and run the same "
            "command again"
        )


def _record(results: Path, name: str) -> None:
    if not (FILE.value and COMMAND.value):
        raise UserError("record needs --file and --command; --help says of what")
    try:
        text = expanded(FILE.value).read_text()
        printed = json.loads(text if text.startswith("{\n") else text.splitlines()[-1])
    except (ValueError, IndexError):
        raise UserError(f"{FILE.value} holds no JSON; give a line that eval.py printed, or benchmarks.run's") from None
    record = imported(name, printed, COMMAND.value, TITLE.value or name, commit(ROOT), numerics_hash(ROOT))
    path = record_path(results, FOLDERS[record["kind"]], name)
    write_record(path, record)
    print(f"wrote {path}; python reproduce.py report --documents shows it", file=sys.stderr)


def main() -> None:
    cli.run(run, __name__, positional="the name of an experiment", config=False)
