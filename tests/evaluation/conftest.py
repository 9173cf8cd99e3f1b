"""Tiny networks with nothing left at its default, photographs of odd sizes, and runs that were never trained."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from resnet_jax import parallel, recipes
from resnet_jax.config import make_model
from resnet_jax.data.normalization import Normalization
from resnet_jax.train import checkpoint
from resnet_jax.train.state import init_state
from resnet_jax.train.workdir import prepare_workdir

TRAIN_SIZE = (30, 30)
# Height and width by file, sorted by class and path as the split is.
VALIDATION_SIZES = {
    "ant/lying.png": (45, 60),
    "ant/upright.jpg": (61, 47),
    "bee/square.png": (51, 51),
    "cat/lying.jpg": (43, 58),
}


def _random_variables(model, seed=0):
    """Variables as after training: scales, biases and batch statistics that differ from channel to channel.

    A network at its start has no use for masks: its biases and running means are 0.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        if name == "kernel":
            return rng.normal(0, (1.5 / np.prod(leaf.shape[-4:-1])) ** 0.5, leaf.shape).astype(np.float32)
        return rng.normal(0, 0.5, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="session")
def random_variables():
    return _random_variables


class Folder(NamedTuple):
    root: object
    class_names: list
    sizes: list  # (height, width) of the validation photographs, in order.
    labels: list


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """A folder of three classes of noise, whose every pixel counts."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    files = {f"val/{name}": size for name, size in VALIDATION_SIZES.items()}
    files |= {f"train/{name}/{i}.png": TRAIN_SIZE for name in ("ant", "bee", "cat") for i in range(2)}
    for name, size in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rng.integers(256, size=(*size, 3), dtype=np.uint8)).save(root / name, quality=95)
    return Folder(root, ["ant", "bee", "cat"], list(VALIDATION_SIZES.values()), [0, 0, 1, 2])


@pytest.fixture(scope="session")
def folder_config():
    """A config of tiny crops of the photographs in a folder."""

    def make(root, **settings):
        config = recipes.base()
        defaults = {
            "data_dir": str(root),
            "data.name": "folder",
            "data.normalization": "channel",
            "data.crop_size": 32,
            "data.eval_shorter_side": 41,
            "data.threads": 2,
            "model.name": "resnet18",
            "model.stage_sizes": (1, 1),
            "model.width": 4,
        }
        config.update_from_flattened_dict(defaults | settings)
        return config

    return make


@pytest.fixture(scope="session")
def digits_config():
    """A config of a tiny network on the digits."""

    def make(**settings):
        config = recipes.digits_quickstart()
        config.update_from_flattened_dict({"model.stage_sizes": (1,), "model.width": 4} | settings)
        return config

    return make


@pytest.fixture(scope="session")
def save_run():
    """Writes the workdir of a run with random variables at each step; returns the variables that evaluations use."""

    def save(workdir, config, errors, class_names=None, normalize=None, seed=0):
        """``errors``: by step, the evaluation error that the checkpoint was saved with. ``class_names``: the digits."""
        class_names = class_names or [str(digit) for digit in range(10)]
        normalize = normalize or Normalization(np.full(3, 0.4, np.float32), np.full(3, 0.3, np.float32))
        model, mesh = make_model(config, len(class_names)), parallel.data_mesh()
        template = jax.eval_shape(lambda: init_state(config, model, (32, 32, 3), mesh))
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
        used = {}
        manager = checkpoint.open_checkpoints(workdir / "checkpoints", keep=len(errors))
        for step, error in errors.items():
            variables = _random_variables(model, seed + step)
            used[step] = _random_variables(model, seed + 1000 + step) if config.ema_decay else variables
            state = dataclasses.replace(
                zeros, step=np.int32(step), ema=used[step] if config.ema_decay else {}, **variables
            )
            metrics = None if error is None else {"top1_error": error}
            checkpoint.save(manager, step, parallel.to_global(state, parallel.replicated(mesh)), metrics)
        checkpoint.close(manager)
        prepare_workdir(workdir, config, normalize, class_names)
        return used

    return save
