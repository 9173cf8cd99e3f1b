"""Trains a network: python train.py --config configs/cifar10.py:resnet20 --workdir DIR [--config.key=value ...]

Started again on the same workdir it resumes from the newest checkpoint.
"""

import signal

# Until training takes the signal over, Ctrl-C ends the program at once, without a traceback from some import.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from resnet_jax.programs.quiet import quiet_runtime

quiet_runtime()

from absl import flags

from resnet_jax.config import Config
from resnet_jax.errors import UserError
from resnet_jax.experiment.training import train
from resnet_jax.programs import cli

flags.adopt_module_key_flags(cli)
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and pictures go.")
ALLOW_CONFIG_CHANGE = flags.DEFINE_bool("allow_config_change", False, "Resume in a workdir with another config.")


def run(config: Config) -> None:
    if not WORKDIR.value:
        raise UserError("--workdir is missing; name a folder, such as runs/resnet20")
    train(config, WORKDIR.value, ALLOW_CONFIG_CHANGE.value)


def main() -> None:
    cli.run(run, __name__)
