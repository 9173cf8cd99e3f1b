"""Writes a trained network as a small folder of weights: python -m resnet_jax.programs.export --workdir DIR FOLDER

eval.py, predict.py and --config.init.path take FOLDER as they take the workdir. It holds the weights in PyTorch's
layout (``weights.safetensors``), without the optimizer's state, and the config, the normalisation and the class names.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the program at once, without a traceback from some import.

from absl import flags

from resnet_jax.errors import UserError
from resnet_jax.experiment.exported import export
from resnet_jax.experiment.networks import load_run
from resnet_jax.files import expanded
from resnet_jax.programs import cli

WORKDIR = flags.DEFINE_string("workdir", None, "The run.")
CHECKPOINT = flags.DEFINE_enum("checkpoint", "latest", ["latest", "best"], "Which checkpoint of it.")


def run(folders: list[str]) -> None:
    if WORKDIR.value is None:
        raise UserError("--workdir is missing; name the run to export")
    if len(folders) > 1:
        raise UserError(f"unexpected argument {folders[1]!r}; name one FOLDER")
    model, variables, normalization, class_names, config, step, image_shape = load_run(WORKDIR.value, CHECKPOINT.value)
    export(expanded(folders[0]), model, variables, config, class_names, normalization, image_shape, {"step": step})


def main() -> None:
    cli.run(run, __name__, positional="FOLDER", config=False)


if __name__ == "__main__":
    main()
