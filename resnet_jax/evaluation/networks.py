"""Trained networks, ready to apply: out of a run's workdir, or of a file of PyTorch weights."""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnet_jax import parallel, recipes
from resnet_jax.config import make_model, model_fields, refuse_change, validate
from resnet_jax.data.class_names import imagenet_names
from resnet_jax.data.dataset import load_data
from resnet_jax.data.normalization import Normalization, channel_normalization, normalization
from resnet_jax.errors import UserError, one_line
from resnet_jax.interop.torch_weights import load_torch
from resnet_jax.models import Model
from resnet_jax.models.resnet import ResNet
from resnet_jax.train import checkpoint
from resnet_jax.train.state import init_state
from resnet_jax.train.workdir import read_class_names


class Network(NamedTuple):
    """``jax.nn.softmax(model.apply(variables, normalize(images)))`` are the probabilities of ``class_names``.

    variables: on the mesh; the moving average where the run kept one. config: the run's, or that of the weights.
    step: of the checkpoint; None for PyTorch weights.
    """

    model: Model
    variables: Any
    normalize: Normalization
    class_names: list[str]
    config: ConfigDict
    step: int | None


def load_run(
    workdir: str | Path, which: str = "latest", config: ConfigDict | None = None, mesh: Mesh | None = None
) -> Network:
    """The "latest" or "best" checkpoint of a run of train.py, with the run's own config unless one is given.

    Raises UserError if there is no such checkpoint, or if it does not fit config.model.
    """
    workdir, mesh = Path(workdir), mesh or parallel.data_mesh()
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"there is no run in {workdir}; train one with train.py, or correct the path")
    config = config or stored_config(workdir)
    class_names = read_class_names(workdir)
    normalize = Normalization.load(workdir / "normalization.npz")
    model = make_model(config, len(class_names))
    # The parameters' shapes do not depend on the images' size.
    template = jax.eval_shape(lambda: init_state(config, model, (32, 32, 3), mesh))
    manager = checkpoint.open_checkpoints(workdir / "checkpoints", config.keep_checkpoints, read_only=True)
    try:
        if which == "best":
            state = checkpoint.restore_best(manager, template, mesh)
        else:
            state = checkpoint.restore_latest(manager, template, mesh, set_aside=False)
    finally:
        manager.close()
    if state is None:
        raise UserError(f"there is no {which} checkpoint in {workdir}; train first, or correct the path")
    return Network(model, state.variables, normalize, class_names, config, int(state.step))


def load_weights(
    path: Path, config: ConfigDict, class_names: list[str], normalize: Normalization, mesh: Mesh
) -> Network:
    """The network of config.model with the PyTorch weights of a file. Raises UserError as ``load_torch`` does."""
    fields = model_fields(config, len(class_names))
    model = make_model(config, len(class_names))
    if isinstance(model, ResNet) and model.bottleneck and model.stride_placement == "v1":
        print(
            "note: config.model.stride_placement is 'v1', the paper's; weights of torchvision and timm need 'v1.5'",
            file=sys.stderr,
        )
    if config.data.normalization != "channel":
        print(
            f"note: config.data.normalization is {config.data.normalization!r}; most published weights need 'channel'",
            file=sys.stderr,
        )
    variables = parallel.to_global(load_torch(**fields, source=path), parallel.replicated(mesh))
    return Network(model, variables, normalize, class_names, config, None)


def load_network(config: ConfigDict, workdir: str | None, torch_weights: str | None, which: str = "latest") -> Network:
    """The network of a run, or of a file of PyTorch weights for config.model, with as little of the data as it takes.

    Raises UserError unless exactly one of the two is given.
    """
    if (workdir is None) == (torch_weights is None):
        raise UserError("give either --workdir or --torch_weights")
    validate(config, num_devices=1)
    if workdir:
        refuse_change(config, Path(workdir) / "config.json", sections=("model.",))
        return load_run(workdir, which, config)
    if config.data.name == "imagenet2012" and config.data.normalization == "channel":
        class_names, normalize = imagenet_names(), channel_normalization(config)
    else:
        data = load_data(config)
        class_names, normalize = data.class_names, normalization(config, data)
    return load_weights(Path(str(torch_weights)), config, class_names, normalize, parallel.data_mesh())


def stored_config(workdir: Path) -> ConfigDict:
    """The config of a run; keys that are newer than the run have their defaults. Raises UserError if it is damaged."""
    config = recipes.base()
    try:
        config.update(json.loads((workdir / "config.json").read_text()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{workdir / 'config.json'} is missing or damaged ({one_line(error)}); restore it") from None
    return config
