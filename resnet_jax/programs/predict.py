"""Names what is in photographs: python predict.py (--workdir DIR | --config FILE --torch_weights WEIGHTS) IMAGE...

An IMAGE is a file or a folder. Prints the five best classes and their probabilities, or a detector's boxes (x1, y1, x2,
y2) in pixels with theirs; --save_dir draws them, too.
"""

import codecs
import io
import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the program at once, without a traceback from some import.

from pathlib import Path

from absl import flags

from resnet_jax.config import Config
from resnet_jax.evaluation.predict import find_images, picture_names
from resnet_jax.experiment.networks import load_network
from resnet_jax.files import expanded
from resnet_jax.programs import cli
from resnet_jax.tasks.task import Member

flags.adopt_module_key_flags(cli)
WORKDIR = flags.DEFINE_string("workdir", None, "Use a checkpoint of this run, or this exported network.")
TORCH_WEIGHTS = flags.DEFINE_string("torch_weights", None, "Use the PyTorch weights in this file, or timm/NAME.")
CHECKPOINT = flags.DEFINE_enum("checkpoint", "latest", ["latest", "best"], "Which checkpoint of --workdir.")
SAVE_DIR = flags.DEFINE_string("save_dir", None, "Write a picture of each photograph with what is in it here.")


def _any_name(error: UnicodeError) -> tuple[str | bytes, int]:
    """Prints bytes that are not UTF-8 as they are, and what the terminal's encoding lacks by its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    # One character at a time: each is of one of the two kinds.
    error = UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    byte = 0xDC80 <= ord(error.object[error.start]) <= 0xDCFF
    return codecs.lookup_error("surrogateescape" if byte else "backslashreplace")(error)


def run(config: Config | None, images: list[str]) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        codecs.register_error("any name", _any_name)
        sys.stdout.reconfigure(errors="any name")
    save_dir = expanded(SAVE_DIR.value) if SAVE_DIR.value else None
    paths = find_images([Path(image) for image in images])
    network = load_network(config, WORKDIR.value, TORCH_WEIGHTS.value, CHECKPOINT.value)
    member = Member(network.model, network.normalize, network.variables)
    look = network.config.data.look(network.image_shape)
    pictures = picture_names(paths)
    for described in network.config.task.predict(member, network.class_names, paths, look):
        print(described.path)
        for line in described.lines:
            print(f"  {line}")
        if save_dir:
            described.draw(save_dir / pictures[described.path])


def main() -> None:
    cli.run(run, __name__, positional="IMAGE", config_optional=True, jobs=False)
