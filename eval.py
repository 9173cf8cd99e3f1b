"""Scores a network: python eval.py --config configs/resnet20_cifar10.py (--workdir DIR | --torch_weights FILE)

Prints a line to read and, last, a line of JSON. Errors are in percent.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the program at once, without a traceback from some import.

from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from resnet_jax import cli
from resnet_jax.evaluation.score import score
from resnet_jax.writers import to_json

flags.adopt_module_key_flags(cli)
WORKDIR = flags.DEFINE_string("workdir", None, "Score a checkpoint of this run.")
TORCH_WEIGHTS = flags.DEFINE_string("torch_weights", None, "Score the PyTorch weights in this file.")
CHECKPOINT = flags.DEFINE_enum("checkpoint", "latest", ["latest", "best"], "Which checkpoint of --workdir.")
SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Which examples.")
ALLOW_CONFIG_CHANGE = flags.DEFINE_bool("allow_config_change", False, "Score with a config the run did not have.")


def main(config: ConfigDict) -> None:
    workdir, weights = (Path(flag.value) if flag.value else None for flag in (WORKDIR, TORCH_WEIGHTS))
    result = score(config, workdir, weights, CHECKPOINT.value, SPLIT.value, ALLOW_CONFIG_CHANGE.value)
    print(
        f"{config.model.name} on {config.data.name} {result['split']}: top-1 error {result['top1_error']:.2f} %, "
        f"top-5 error {result['top5_error']:.2f} %, loss {result['loss']:.4f}, {result['num_examples']} examples"
    )
    print(to_json(result))


if __name__ == "__main__":
    cli.run(main)
