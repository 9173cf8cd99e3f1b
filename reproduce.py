"""Reproduces the paper: python reproduce.py EXPERIMENT --scale smoke|small|medium|paper, or table1, or report --scale SCALE.

EXPERIMENT is a table or figure: table2 to table6, fig1, fig4, fig6, fig7. What has been trained and scored before is
kept; what was interrupted goes on. --dry_run prints the plan and what it costs. report makes RESULTS/SCALE/report.html
out of what there is.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the program at once, without a traceback from some import.

import sys
from pathlib import Path

import jax
from absl import flags

from resnet_jax import cli
from resnet_jax.errors import UserError
from resnet_jax.reproduction import cost, experiments, report, running, sections
from resnet_jax.reproduction.document import to_markdown

ROOT = Path(__file__).resolve().parent

SCALE = flags.DEFINE_enum("scale", None, list(experiments.SCALES), "How much of the paper's work is done.")
SEEDS = flags.DEFINE_integer("seeds", None, "Runs of each network; default 5 of table6's, 1 of the others'.", 1)
NETWORKS = flags.DEFINE_list("networks", None, "Only these networks of the experiment, such as plain20,plain56.")
RUNS = flags.DEFINE_string("runs", "runs", "Folder of the workdirs: RUNS/SCALE/NETWORK-seedSEED.")
RESULTS = flags.DEFINE_string("results", "results", "Folder of the ledger and the report: RESULTS/SCALE.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Prepared data sets; default $TFDS_DATA_DIR, then TFDS's own.")
README = flags.DEFINE_string("readme", None, "Write the table of all results into this file, between its marks.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan and its cost, and do nothing.")


def main(arguments: list[str]) -> None:
    (name,) = arguments if len(arguments) == 1 else ("",)
    if name not in (*experiments.EXPERIMENTS, "report"):
        raise UserError(f"name one of {', '.join(experiments.EXPERIMENTS)} and report, not {' '.join(arguments)!r}")
    if not DRY_RUN.value:
        jax.config.update("jax_platforms", "cpu")  # The accelerator's memory is for the programs that train and score.
    if name == "table1":
        print(to_markdown(sections.table1()))
        return
    if not SCALE.value:
        raise UserError(f"--scale is missing; give one of {', '.join(experiments.SCALES)}")
    scale, results = SCALE.value, Path(RESULTS.value)
    failures: dict[str, str] = {}
    if name == "report" and DRY_RUN.value:
        raise UserError("report trains nothing; leave --dry_run out")
    if name != "report":
        runs = experiments.runs(name, scale, SEEDS.value, NETWORKS.value)
        places = running.Places(ROOT, Path(RUNS.value), results, Path(DATA_DIR.value) if DATA_DIR.value else None)
        if DRY_RUN.value:
            print(cost.plan(name, scale, runs, places))
            return
        failures = running.perform(name, scale, runs, places)
        print(to_markdown(report.one_section(ROOT, results, scale, name)))
    if README.value:
        report.update_readme(Path(README.value), ROOT, results)
    print(f"the report is {report.write_report(ROOT, results, scale)}", file=sys.stderr)
    if failures:
        raise UserError(
            f"{len(failures)} runs failed: {', '.join(failures)}; their messages are above; mend them and run the same "
            "command again"
        )


if __name__ == "__main__":
    cli.run(main, positional="the name of an experiment", config=False)
