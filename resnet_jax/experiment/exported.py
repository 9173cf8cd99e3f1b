"""Trained networks without what training takes: a folder of weights each. Some come along with the package, by name."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnet_jax.config import Config, to_json
from resnet_jax.data.normalization import Normalization
from resnet_jax.errors import UserError, one_line
from resnet_jax.files import expanded
from resnet_jax.train.workdir import write_description

INCLUDED = Path(__file__).parents[1] / "trained"
"""The networks that the package brings, a folder each."""

_WEIGHTS = "weights.safetensors"
_FACTS = "trained.json"


def included() -> list[str]:
    """The names of the networks that the package brings."""
    return sorted(path.parent.name for path in INCLUDED.glob(f"*/{_WEIGHTS}"))


def find_run(run: str | Path) -> Path:
    """The folder ``run``, of a run of train.py or exported; else that of the network of this name in the package.

    Raises UserError if nothing is there that was trained.
    """
    for folder in (expanded(run), INCLUDED / run):
        if (folder / "checkpoints").is_dir() or is_exported(folder):
            return folder
    raise UserError(
        f"there is no run in {run}; train one with train.py, correct the path, or name a network that comes along: "
        f"{', '.join(included())}"
    )


def is_exported(folder: Path) -> bool:
    """Whether the folder holds weights alone, and not the checkpoints of a run."""
    return (folder / _WEIGHTS).is_file() and not (folder / "checkpoints").is_dir()


def read_weights(folder: Path, config: Config, model: Any, channels: int) -> tuple[dict[str, Any], int]:
    """The variables of an exported ``model``, which is config.model's, and the step that they are of.

    Raises UserError if they cannot be read, or do not fit.
    """
    path = folder / _FACTS
    try:
        step = int(json.loads(path.read_text())["step"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is missing or damaged ({one_line(error)}); restore it") from None
    variables = config.task.load_torch(config.model.name, folder / _WEIGHTS, model, config.model.overrides, channels)
    return variables, step


def export(
    folder: Path,
    model: Any,
    variables: Mapping[str, Any],
    config: Config,
    class_names: list[str],
    normalization: Normalization,
    image_shape: tuple[int, int, int],
    facts: Mapping[str, Any],
) -> None:
    """Writes a trained network as a folder that ``load_run``, eval.py, predict.py and config.init.path take.

    ``weights.safetensors`` has the keys of torchvision, as ``save_torch`` writes them; ``trained.json`` the ``facts``,
    of which "step" must be one. The other files are those of a workdir; the config is without ``data_dir``.

    Raises UserError if ``folder`` is there already, or if the network cannot be written as PyTorch weights; OSError
    where the folder cannot be written. It is there as a whole or not at all.
    """
    if folder.exists():
        raise UserError(f"{folder} is there already; name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as around:
        written = Path(around) / folder.name
        written.mkdir()  # Unlike the one around it, which is its owner's alone.
        config.task.save_torch(written / _WEIGHTS, model, variables)
        stored = to_json(config.model_copy(update={"data_dir": None}))
        write_description(written, stored, normalization.save, class_names, image_shape)
        (written / _FACTS).write_text(json.dumps(facts, indent=1) + "\n")
        written.rename(folder)
