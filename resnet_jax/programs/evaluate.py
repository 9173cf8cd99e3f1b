"""Scores a network: python eval.py (--workdir DIR | --config FILE --torch_weights WEIGHTS) [--config.key=value ...]

Several --workdir and --torch_weights make an ensemble. Without --config the data and the model are those of the first
--workdir. Prints a line to read and, last, a line of JSON. Errors are in percent.
"""

import os
import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the program at once, without a traceback from some import.

from resnet_jax.programs.quiet import quiet_runtime

quiet_runtime()

from pathlib import Path

from absl import flags

from resnet_jax import distributed, parallel
from resnet_jax.config import Config, read_config
from resnet_jax.data.dataset import Dataset
from resnet_jax.errors import UserError
from resnet_jax.evaluation.protocols import PROTOCOLS
from resnet_jax.evaluation.records import append_result, check_table
from resnet_jax.experiment.exported import find_run
from resnet_jax.experiment.networks import Network
from resnet_jax.experiment.scoring import score
from resnet_jax.files import check_output, expanded
from resnet_jax.programs import cli
from resnet_jax.tasks import detection, localisation
from resnet_jax.train.writers import to_json

flags.adopt_module_key_flags(cli)
WORKDIR = flags.DEFINE_multi_string("workdir", [], "Score a checkpoint of this run, or this exported network.")
TORCH_WEIGHTS = flags.DEFINE_multi_string(
    "torch_weights", [], "Score PyTorch weights: FILE or timm/NAME, maybe after MODEL=."
)
CHECKPOINT = flags.DEFINE_enum("checkpoint", "latest", ["latest", "best"], "Which checkpoint of each --workdir.")
SPLIT = flags.DEFINE_enum(
    "split",
    None,
    ["train", "validation", "test"],
    "Which examples; default test, of photographs validation where there is one.",
)
PROTOCOL = flags.DEFINE_enum(
    "protocol",
    "single",
    list(dict.fromkeys([*PROTOCOLS, *detection.PROTOCOLS, *localisation.PROTOCOLS])),
    f"The views of each photograph. Of detectors: {', '.join(detection.PROTOCOLS)}; of localisers: "
    f"{', '.join(localisation.PROTOCOLS)}.",
)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the data are now; for runs scored without --config.")
RESULTS_CSV = flags.DEFINE_string("results_csv", None, "Add a line to this table of results.")
SCORES_CSV = flags.DEFINE_string(
    "scores_csv",
    None,
    "Write the best classes of each image here; of a detector each class's figures, and draw its curves beside it.",
)
RESPONSES_CSV = flags.DEFINE_string(
    "responses_csv", None, "Write the standard deviation of each 3x3 layer's response here, and draw it beside it."
)
ALLOW_CONFIG_CHANGE = flags.DEFINE_bool("allow_config_change", False, "Score with a config the run did not have.")


def run(config: Config | None) -> None:
    workdirs: list[str] = WORKDIR.value
    if RESPONSES_CSV.value and len(workdirs) + len(TORCH_WEIGHTS.value) != 1:
        raise UserError("--responses_csv is of one network; give one --workdir or --torch_weights")
    if config is None:
        config = _config_of_run(workdirs)
    elif DATA_DIR.value:
        raise UserError("--data_dir is for runs scored without --config; use --config.data_dir")
    if SCORES_CSV.value and PROTOCOL.value == "proposals":  # Now, and not once they were scored.
        raise UserError("--scores_csv is of classes, which --protocol=proposals does not tell apart; leave it out")
    if RESPONSES_CSV.value and not config.task.has_responses:
        raise UserError(f"--responses_csv is not for config.task.name {config.task.name!r}; leave it out")
    results_csv, scores_csv, responses_csv = (
        expanded(flag.value) if flag.value else None for flag in (RESULTS_CSV, SCORES_CSV, RESPONSES_CSV)
    )
    if distributed.active():  # All processes measure responses together, or none does.
        distributed.agree({"the flag --responses_csv": repr(bool(responses_csv))})
    if parallel.is_main_process():  # Now, and not once hours of scoring are done.
        _check_outputs(results_csv, scores_csv, responses_csv, config.task.draws_scores)
    record, scores, dataset, networks, summary = score(
        config,
        workdirs,
        TORCH_WEIGHTS.value,
        CHECKPOINT.value,
        SPLIT.value,
        PROTOCOL.value,
        ALLOW_CONFIG_CHANGE.value,
    )
    if parallel.is_main_process():
        print(f"{record['model']} on {record['data']} {record['split']}, {record['protocol']}: {summary}")
        print(to_json(record))
        if results_csv:
            append_result(results_csv, record)
        if scores_csv:  # Reads the photographs' names, in which something may be wrong by now.
            config.task.write_scores(scores_csv, scores, dataset, record["split"])
    if responses_csv:
        _measure_responses(
            networks[0], dataset, record["split"], config.eval_batch_size, responses_csv, record["model"]
        )


def _measure_responses(network: Network, dataset: Dataset, split: str, batch_size: int, path: Path, name: str) -> None:
    from resnet_jax.analysis.responses import layer_responses, plot_responses, write_responses

    responses = layer_responses(  # Every process has its share of the batches.
        network.model,
        network.variables,
        network.normalize,
        dataset,
        split,
        parallel.data_mesh(),
        batch_size,
    )
    if parallel.is_main_process():
        write_responses(path, responses)
        plot_responses(path.with_suffix(".png"), {name: responses})


def _check_outputs(
    results_csv: Path | None, scores_csv: Path | None, responses_csv: Path | None, draws_scores: bool
) -> None:
    tables = [path for path in (results_csv, scores_csv, responses_csv) if path]
    for path in tables:
        check_output(path, appends=path == results_csv)
        if path.suffix == ".png":
            raise UserError(f"{path} would be a picture; name a table, FILE.csv")
    places = [os.path.realpath(path) for path in tables if path.is_file() or not path.exists()]  # No pipes or devices.
    if len(set(places)) < len(places):
        raise UserError(f"{', '.join(map(str, tables))} are not different files; name each another one")
    if results_csv:
        check_table(results_csv)
    for drawn in (responses_csv, scores_csv if draws_scores else None):
        if drawn:
            check_output(drawn.with_suffix(".png"))


def _config_of_run(workdirs: list[str]) -> Config:
    if not workdirs:
        raise UserError("give a --workdir, or --config and --torch_weights; --help shows both")
    config = read_config(find_run(workdirs[0]) / "config.json")
    return config.model_copy(update={"data_dir": DATA_DIR.value}) if DATA_DIR.value else config


def main() -> None:
    cli.run(run, __name__, config_optional=True)
