"""Scores a checkpoint or a published set of weights: what eval.py runs."""

from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from resnet_jax import parallel
from resnet_jax.config import make_model, model_fields, refuse_change, validate
from resnet_jax.data.augment import normalization
from resnet_jax.data.resident import load_dataset
from resnet_jax.errors import UserError
from resnet_jax.evaluation.classify import evaluate, make_eval_step
from resnet_jax.interop.torch_weights import load_torch
from resnet_jax.train import checkpoint
from resnet_jax.train.state import init_state


def score(
    config: ConfigDict,
    workdir: Path | None = None,
    torch_weights: Path | None = None,
    which: str = "latest",
    split: str = "test",
    allow_config_change: bool = False,
) -> dict[str, Any]:
    """Evaluates the "latest" or "best" checkpoint of ``workdir``, or the PyTorch weights in a file, on a split.

    Returns what ``evaluate`` does, and {"split", "weights"} with {"checkpoint", "step"} of a run. Raises UserError
    unless exactly one source of weights is given and it fits config.model.
    """
    if (workdir is None) == (torch_weights is None):
        raise UserError("give either --workdir or --torch_weights")
    mesh = parallel.data_mesh()
    validate(config, num_devices=1)  # The training batch is not used here.
    if workdir and not (workdir / "checkpoints").is_dir():
        raise UserError(f"there is no run in {workdir}; train one with train.py, or correct --workdir")
    if workdir and not allow_config_change:
        refuse_change(config, workdir / "config.json", sections=("model.", "data."))
    dataset = load_dataset(config)
    chosen = dataset.split(split)
    model = make_model(config, dataset.num_classes)
    result: dict[str, Any] = {"split": split}
    if torch_weights:
        variables = load_torch(**model_fields(config, dataset.num_classes), source=torch_weights)
        variables = parallel.to_global(variables, parallel.replicated(mesh))
        result["weights"] = str(torch_weights)
    else:
        assert workdir is not None
        image_shape = dataset.train.images.shape[1:]
        template = jax.eval_shape(lambda: init_state(config, model, image_shape, mesh))
        manager = checkpoint.open_checkpoints(workdir / "checkpoints", config.keep_checkpoints, read_only=True)
        try:
            if which == "best":
                state = checkpoint.restore_best(manager, template, mesh)
            else:
                state = checkpoint.restore_latest(manager, template, mesh, set_aside=False)
        finally:
            manager.close()
        if state is None:
            raise UserError(f"there is no {which} checkpoint in {workdir}; train first, or correct --workdir")
        variables = state.variables
        result |= {"weights": str(workdir), "checkpoint": which, "step": int(state.step)}
    mean, std = normalization(config, dataset.train)
    on_device = parallel.to_global(chosen, parallel.replicated(mesh))
    eval_step = make_eval_step(model, mean, std, mesh)
    return result | evaluate(eval_step, variables, on_device, config.eval_batch_size, mesh)
