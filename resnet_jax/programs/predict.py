"""Names what is in photographs: python predict.py (--workdir DIR | --config FILE --torch_weights WEIGHTS) IMAGE...

An IMAGE is a file or a folder. Prints the five best classes and their probabilities; --save_dir draws them, too.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the program at once, without a traceback from some import.

from pathlib import Path

from absl import flags

from resnet_jax import build
from resnet_jax.config import Config
from resnet_jax.evaluation.predict import draw, find_images, picture_name, predict
from resnet_jax.experiment.networks import load_network
from resnet_jax.programs import cli

flags.adopt_module_key_flags(cli)
WORKDIR = flags.DEFINE_string("workdir", None, "Use a checkpoint of this run.")
TORCH_WEIGHTS = flags.DEFINE_string("torch_weights", None, "Use the PyTorch weights in this file.")
CHECKPOINT = flags.DEFINE_enum("checkpoint", "latest", ["latest", "best"], "Which checkpoint of --workdir.")
SAVE_DIR = flags.DEFINE_string("save_dir", None, "Write a picture of each photograph with its classes here.")


def run(config: Config | None, images: list[str]) -> None:
    paths = find_images([Path(image) for image in images])
    network = load_network(config, WORKDIR.value, TORCH_WEIGHTS.value, CHECKPOINT.value)
    shorter_side, crop = build.central_crop(network.config, network.image_shape)
    found = predict(network.model, network.variables, network.normalize, network.class_names, paths, shorter_side, crop)
    for prediction in found:
        print(prediction.path)
        for name, probability in zip(prediction.classes, prediction.probabilities, strict=True):
            print(f"  {100 * probability:6.2f} %  {name}")
        if SAVE_DIR.value:
            draw(prediction, Path(SAVE_DIR.value) / picture_name(prediction.path))


def main() -> None:
    cli.run(run, __name__, positional="IMAGE", config_optional=True)
