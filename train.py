"""Trains a network: python train.py --config configs/resnet20_cifar10.py --workdir DIR [--config.key=value ...]

Started again on the same workdir it goes on where it was.
"""

import signal

# Until training takes the signal over, Ctrl-C ends the program at once, without a traceback from some import.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from resnet_jax import cli
from resnet_jax.errors import UserError
from resnet_jax.train.loop import train

flags.adopt_module_key_flags(cli)
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and pictures go.")
ALLOW_CONFIG_CHANGE = flags.DEFINE_bool("allow_config_change", False, "Go on in a workdir with another config.")


def main(config: ConfigDict) -> None:
    if not WORKDIR.value:
        raise UserError("--workdir is missing; name a folder, such as runs/resnet20")
    train(config, Path(WORKDIR.value), ALLOW_CONFIG_CHANGE.value)


if __name__ == "__main__":
    cli.run(main)
