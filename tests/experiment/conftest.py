"""Configs of tiny networks, and runs that were never trained."""

import dataclasses

import jax
import numpy as np
import pytest

from resnet_jax import build, parallel
from resnet_jax.config import load_config, override, to_json
from resnet_jax.data.normalization import Normalization
from resnet_jax.train import checkpoint
from resnet_jax.train.state import init_state
from resnet_jax.train.workdir import prepare_workdir


@pytest.fixture(scope="session")
def digits_config():
    """``(**changes) -> Config`` of a tiny network on the digits."""

    def make(**changes):
        config = load_config("configs/quickstart.py")
        return override(config, {"model.stage_sizes": (1,), "model.width": 4} | changes)

    return make


@pytest.fixture(scope="session")
def folder_config():
    """``(root, **changes) -> Config`` of tiny crops of the photographs in a folder."""

    def make(root, **changes):
        defaults = {
            "data_dir": str(root),
            "data.kind": "photographs",
            "data.name": "folder",
            "data.crop_size": 32,
            "data.eval_shorter_side": 41,
            "data.crop.shorter_side": (41, 50),
            "data.threads": 2,
            "normalization.name": "channel",
            "model.name": "resnet18",
            "model.stage_sizes": (1,),
            "model.width": 4,
        }
        return override(load_config("configs/quickstart.py"), defaults | changes)

    return make


@pytest.fixture(scope="session")
def save_run(random_variables):
    """Writes the workdir of a run with random variables at each step; returns the variables that evaluations use."""

    def save(workdir, config, errors, class_names=None, normalize=None, seed=0):
        """``errors``: by step, the evaluation error that the checkpoint was saved with. ``class_names``: the digits."""
        class_names = class_names or [str(digit) for digit in range(10)]
        normalize = normalize or Normalization(np.full(3, 0.4, np.float32), np.full(3, 0.3, np.float32))
        model, mesh = build.make_model(config, len(class_names)), parallel.data_mesh()
        task, optimizer = config.task.without_data(model), build.make_optimizer(config, model)
        template = jax.eval_shape(
            lambda: init_state(task, optimizer, 0, config.ema_decay, config.schedule.hold.error, (32, 32, 3), mesh)
        )
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
        used = {}
        manager = checkpoint.open_checkpoints(workdir / "checkpoints", len(errors), task.best)
        for step, error in errors.items():
            variables = random_variables(model, seed + step)
            used[step] = random_variables(model, seed + 1000 + step) if config.ema_decay else variables
            state = dataclasses.replace(
                zeros, step=np.int32(step), ema=used[step] if config.ema_decay else {}, **variables
            )
            metrics = None if error is None else {task.best: error}
            checkpoint.save(manager, step, parallel.to_global(state, parallel.replicated(mesh)), metrics)
        checkpoint.close(manager)
        prepare_workdir(workdir, to_json(config), normalize.save, class_names, (32, 32, 3))
        return used

    return save
