"""Trained networks, ready to apply: out of a run's workdir, or of a file of PyTorch weights."""

import sys
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import numpy as np
from jax.sharding import Mesh

from resnet_jax import build, parallel
from resnet_jax.config import ALLOW_CHANGE, Config, flatten, read_config, refuse_change
from resnet_jax.data import Photographs
from resnet_jax.data.class_names import imagenet_names
from resnet_jax.data.dataset import Dataset
from resnet_jax.data.decode.boxes import Interpolation
from resnet_jax.data.normalization import Normalization
from resnet_jax.errors import UserError
from resnet_jax.experiment.exported import find_run, is_exported, read_weights
from resnet_jax.files import expanded
from resnet_jax.interop.pretrained import Preprocessing, read_repository
from resnet_jax.models.zoo import variant
from resnet_jax.train import checkpoint
from resnet_jax.train.state import init_state
from resnet_jax.train.workdir import read_class_names, read_image_shape

HUB = "timm/"  # Of other owners a name could be a mistyped path, and would be sent to the Hub.


class Network(NamedTuple):
    """``jax.nn.softmax(model.apply(variables, normalize(images)))`` are the probabilities of ``class_names``.

    Of a detector ``model`` is a ``detection.faster_rcnn.FasterRCNN``, and ``model.apply(variables, images, image_hw)``
    gives its detections.

    variables: on the mesh; the moving average where the run kept one. config: the run's, or that of the weights.
    step: of the checkpoint; None for PyTorch weights. image_shape: (H, W, C) of a training image.
    """

    model: Any
    variables: Any
    normalize: Normalization
    class_names: list[str]
    config: Config
    step: int | None
    image_shape: tuple[int, int, int]


def load_run(
    workdir: str | Path,
    which: str = "latest",
    config: Config | None = None,
    mesh: Mesh | None = None,
    fast: bool = False,
) -> Network:
    """The "latest" or "best" checkpoint of a run of train.py, with the run's own config unless one is given.

    ``workdir`` is also the folder of an exported network, or the name of one that comes along (``exported.included``);
    these have one set of weights, the "latest". The model computes with JAX's plain operations, on any platform; with
    ``fast`` by the fastest kernels for ``mesh``.
    Raises UserError if there is no such checkpoint, or if it does not fit config.model.
    """
    workdir, mesh = find_run(workdir), mesh or parallel.data_mesh()
    config = config or read_config(workdir / "config.json")
    class_names = read_class_names(workdir)
    normalize = Normalization.load(workdir / "normalization.npz")
    model = build.make_model(config, len(class_names), mesh if fast else None)
    shape = read_image_shape(workdir)
    if is_exported(workdir):
        if which != "latest":
            raise UserError(
                f"there is no {which} checkpoint in {workdir}, which has one set of weights; ask for latest"
            )
        loaded, step = read_weights(workdir, config, model, channels=shape[-1])
        variables = parallel.to_global(loaded, parallel.replicated(mesh))
        return Network(model, variables, normalize, class_names, config, step, shape)
    task, optimizer, hold = config.task.without_data(model), build.make_optimizer(config, model), config.schedule.hold
    template = jax.eval_shape(
        lambda: init_state(task, optimizer, config.seed, config.ema_decay, hold.error, shape, mesh)
    )
    manager = checkpoint.open_checkpoints(workdir / "checkpoints", config.keep_checkpoints, task.best, read_only=True)
    try:
        if which == "best":
            state = checkpoint.restore_best(manager, template, mesh)
        else:
            state = checkpoint.restore_latest(manager, template, mesh, set_aside=False)
    finally:
        manager.close()
    if state is None:
        raise UserError(f"there is no {which} checkpoint in {workdir}; train first, or correct the path")
    return Network(model, state.variables, normalize, class_names, config, int(state.step), shape)


def refuse_other_network(config: Config, folder: Path, sections: tuple[str, ...] = (), fix: str = ALLOW_CHANGE) -> None:
    """Raises UserError where ``config`` would have the trained network in ``folder`` compute something else.

    That is where it differs from the run's own in config.model, or in a key of the task that no weights tell of; where
    it reads a stage that the run did not train; and in keys that begin with one of ``sections``.
    """
    stored, own = folder / "config.json", config.task.keys_of_network
    of_task = ("task.name", *(f"task.{key}" for key in own)) if own else ()
    refuse_change(config, stored, ("model.", *of_task, *sections), fix)
    was = flatten(read_config(stored)).get("task.trains") if stored.exists() else None
    now = flatten(config).get("task.trains")
    if was == "rpn" and now not in (None, "rpn"):
        raise UserError(
            f"{folder} holds a run that trained the proposals alone (config.task.trains 'rpn'), and {now!r} would read "
            f"layers that are untrained; use a run of the next step, or --config.task.trains=rpn"
        )


class FoundWeights(NamedTuple):
    """A file of PyTorch weights.

    normalization: that of the images they were trained on; None where it is not known, or of other channels.
    revision: the commit of the repository that they are from, if any.
    """

    path: Path
    normalization: Normalization | None = None
    revision: str | None = None


def find_weights(name: str, config: Config, image_shape: tuple[int, int, int]) -> FoundWeights:
    """The PyTorch weights that ``name`` means, for config.model on images (H, W, C): a file, or a repository of timm.

    A repository, "timm/resnet50.a1_in1k", is downloaded where it is not in the cache. Its network must be config.model;
    where config.data has other sizes of photographs than its, or another filter, a line on stderr says how to have
    them. Raises UserError.
    """
    path = expanded(name)
    if path.exists() or not name.startswith(HUB):
        note_differences(config)
        return FoundWeights(path)
    found = read_repository(name)
    for key, theirs, ours in (
        ("name", found.architecture, config.model.name),
        ("stride_placement", found.fields.get("stride_placement"), stride_placement(config)),
    ):
        if theirs != ours:
            raise UserError(
                f"the network of {name} has {key} {theirs!r}, and config.model has {ours!r}; set "
                f"--config.model.{key}={theirs}, as configs/finetune.py:{found.architecture} does"
            )
    _note_other_images(name, found.preprocessing, config)
    mean, std = (np.array(values, np.float32) for values in (found.preprocessing.mean, found.preprocessing.std))
    # That of three channels is none for images of one.
    normalization = Normalization(mean, std) if len(mean) == image_shape[-1] else None
    return FoundWeights(found.weights, normalization, found.revision)


def _note_other_images(name: str, theirs: Preprocessing, config: Config) -> None:
    """Says on stderr what of the photographs is not as timm evaluates the weights, and how to have it so."""
    if not isinstance(config.data, Photographs):
        return
    wanted: dict[str, Any] = {"crop_size": theirs.crop_size, "eval_shorter_side": theirs.shorter_side}
    if theirs.interpolation in get_args(Interpolation):
        wanted["interpolation"] = theirs.interpolation
    other = {key: value for key, value in wanted.items() if value != getattr(config.data, key)}
    if other and parallel.is_main_process():
        known = " ".join(f"--config.data.{key}={value}" for key, value in other.items())
        print(
            f"note: timm evaluates {name} on crops of {theirs.crop_size} pixels of a shorter side of "
            f"{theirs.shorter_side}, by {theirs.interpolation} interpolation; as here with {known}",
            file=sys.stderr,
        )


def load_weights(
    path: Path,
    config: Config,
    class_names: list[str],
    normalize: Normalization,
    mesh: Mesh,
    image_shape: tuple[int, int, int],
) -> Network:
    """The network of config.model with the PyTorch weights of a file, for images of ``image_shape`` (H, W, C).

    Raises UserError as ``load_torch`` does.
    """
    model = build.make_model(config, len(class_names), mesh)
    loaded = config.task.load_torch(config.model.name, path, model, config.model.overrides, image_shape[-1])
    variables = parallel.to_global(loaded, parallel.replicated(mesh))
    return Network(model, variables, normalize, class_names, config, None, image_shape)


def stride_placement(config: Config) -> str | None:
    """Where the bottlenecks of config.model stride, "v1" or "v1.5"; None where it has none."""
    known = variant(config.model.name)
    if "stride_placement" not in known.own_fields:
        return None
    return config.model.overrides.get("stride_placement") or known.fields.get("stride_placement", "v1")


def note_differences(config: Config) -> None:
    """Says on stderr where the config differs from what most published weights need."""
    if stride_placement(config) == "v1":
        print(
            "note: config.model.stride_placement is 'v1', the paper's; weights of torchvision and timm need 'v1.5'",
            file=sys.stderr,
        )
    if config.normalization.name != "channel":
        print(
            f"note: config.normalization.name is {config.normalization.name!r}; most published weights need 'channel'",
            file=sys.stderr,
        )


def load_network(
    config: Config | None, workdir: str | None, torch_weights: str | None, which: str = "latest"
) -> Network:
    """The network of a run, or of PyTorch weights for config.model, with as little of the data as it takes.

    ``config`` is needed for PyTorch weights only; ``find_weights`` says what ``torch_weights`` can be. Raises UserError
    unless exactly one of the two is given.
    """
    if (workdir is None) == (torch_weights is None):
        raise UserError("give either --workdir or --torch_weights")
    if workdir:
        folder = find_run(workdir)
        if config is not None:
            build.check(config, num_devices=1)
            refuse_other_network(config, folder, fix="set these keys as the run has them, or leave --config out")
        return load_run(workdir, which, config, fast=True)
    if config is None:
        raise UserError("--torch_weights needs --config, a file of configs/ that names the model")
    build.check(config, num_devices=1)
    mesh, name = parallel.data_mesh(), str(torch_weights)
    dataset: Dataset | None = None
    if config.data.kind == "photographs" and config.data.name == "imagenet2012":
        # Of weights trained on ImageNet with a known normalisation no data need to be there.
        shape = (config.data.crop_size, config.data.crop_size, 3)
    else:
        dataset = build.make_dataset(config)
        shape = dataset.image_shape
    found = find_weights(name, config, shape)
    fixed = found.normalization or config.normalization.fixed(config.data.name)
    if dataset is None and fixed is not None:
        return load_weights(found.path, config, imagenet_names(), fixed, mesh, shape)
    dataset = build.make_dataset(config) if dataset is None else dataset
    normalize = found.normalization or build.make_normalization(config, dataset)
    return load_weights(found.path, config, dataset.class_names, normalize, mesh, dataset.image_shape)
