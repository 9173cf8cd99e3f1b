"""Scores a network: python eval.py --config configs/resnet20_cifar10.py (--workdir DIR | --torch_weights FILE)

Several --workdir and --torch_weights make an ensemble. Prints a line to read and, last, a line of JSON. Errors are in
percent.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the program at once, without a traceback from some import.

from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from resnet_jax import cli, parallel
from resnet_jax.analysis.responses import layer_responses, plot_responses, write_responses
from resnet_jax.errors import UserError
from resnet_jax.evaluation import protocols
from resnet_jax.evaluation.records import append_result, write_scores
from resnet_jax.evaluation.score import score
from resnet_jax.writers import to_json

flags.adopt_module_key_flags(cli)
WORKDIR = flags.DEFINE_multi_string("workdir", [], "Score a checkpoint of this run.")
TORCH_WEIGHTS = flags.DEFINE_multi_string("torch_weights", [], "Score PyTorch weights: FILE, or MODEL=FILE.")
CHECKPOINT = flags.DEFINE_enum("checkpoint", "latest", ["latest", "best"], "Which checkpoint of each --workdir.")
SPLIT = flags.DEFINE_enum("split", None, ["train", "validation", "test"], "Which examples.")
PROTOCOL = flags.DEFINE_enum("protocol", "single", protocols.NAMES, "The views of each photograph.")
RESULTS_CSV = flags.DEFINE_string("results_csv", None, "Add a line to this table of results.")
SCORES_CSV = flags.DEFINE_string("scores_csv", None, "Write the best classes of each image here.")
RESPONSES_CSV = flags.DEFINE_string(
    "responses_csv", None, "Write the standard deviation of each 3x3 layer's response here, and draw it beside it."
)
ALLOW_CONFIG_CHANGE = flags.DEFINE_bool("allow_config_change", False, "Score with a config the run did not have.")


def main(config: ConfigDict) -> None:
    if RESPONSES_CSV.value:
        if len(WORKDIR.value) + len(TORCH_WEIGHTS.value) != 1:
            raise UserError("--responses_csv is of one network; give one --workdir or --torch_weights")
        if config.model.name.startswith("vgg"):
            raise UserError("--responses_csv is of networks with batch normalisation; leave it out")
    result, scores, data, networks = score(
        config,
        [Path(workdir) for workdir in WORKDIR.value],
        TORCH_WEIGHTS.value,
        CHECKPOINT.value,
        SPLIT.value,
        PROTOCOL.value,
        ALLOW_CONFIG_CHANGE.value,
    )
    if not parallel.is_main_process():
        return
    print(
        f"{result['model']} on {result['data']} {result['split']}, {result['protocol']}: "
        f"top-1 error {result['top1_error']:.2f} %, top-5 error {result['top5_error']:.2f} %, "
        f"loss {result['loss']:.4f}, {result['num_examples']} examples"
    )
    print(to_json(result))
    if RESULTS_CSV.value:
        append_result(Path(RESULTS_CSV.value), result)
    if SCORES_CSV.value:
        write_scores(Path(SCORES_CSV.value), scores, data, result["split"])
    if RESPONSES_CSV.value:
        path = Path(RESPONSES_CSV.value)
        responses = layer_responses(networks[0], data, result["split"], parallel.data_mesh())
        write_responses(path, responses)
        plot_responses(path.with_suffix(".png"), {result["model"]: responses})


if __name__ == "__main__":
    cli.run(main)
