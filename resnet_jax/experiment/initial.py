"""The weights that a new run starts from: read, checked against the network, and described."""

import hashlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from resnet_jax import parallel
from resnet_jax.config import Config
from resnet_jax.data.normalization import Normalization
from resnet_jax.errors import UserError
from resnet_jax.experiment.exported import find_run, included
from resnet_jax.experiment.networks import HUB, Network, find_weights, load_run, note_differences, stride_placement
from resnet_jax.files import expanded
from resnet_jax.interop.torch_weights import load_torch
from resnet_jax.models.fields import FREE, definition
from resnet_jax.models.stacking import unstack_blocks
from resnet_jax.train.initial import Weights


class Start(NamedTuple):
    """What a new run begins with.

    variables: {"params", "batch_stats"} on the mesh, without the head where it is a new one; {} for a random start.
    normalization: that of the weights; None where config.normalization is to be used.
    record: what ``init.json`` of the workdir says; None for a random start.
    """

    variables: dict[str, Any]
    normalization: Normalization | None
    record: dict[str, object] | None


class _Loaded(NamedTuple):
    """Weights in the unrolled layout, and what is known of them."""

    variables: dict[str, Any]
    class_names: Sequence[str] | None
    normalization: Normalization | None
    record: dict[str, object]


RANDOM = Start({}, None, None)


def check_start(config: Config) -> None:
    """Raises UserError where config.init does not say of which weights, or freezes a head that is a new one."""
    if not isinstance(config.init, Weights):
        return
    if not config.init.path:
        raise UserError(
            "config.init.path is missing; give a file of PyTorch weights or a workdir, or --config.init.name=none"
        )
    if "head" in config.finetune.freeze and config.init.head == "new":
        raise UserError(
            "config.finetune.freeze names the head, and config.init.head is 'new', so that it would stay random; use "
            "--config.init.head=keep, or leave the head out"
        )


def read_start(
    config: Config, model: Any, class_names: list[str], image_shape: tuple[int, int, int], mesh: Mesh
) -> Start:
    """The start that config.init describes, for a network of ``class_names`` on images (H, W, C); says so on stderr.

    Raises UserError where the weights cannot be read, or do not fit the network or its head.
    """
    init = config.init
    if not isinstance(init, Weights):
        if config.task.needs_weights(config.finetune.model(model)):
            raise UserError(
                "layers are frozen, and config.init says of no weights, so that they would stay random; set "
                "--config.init.name=weights and --config.init.path, or freeze nothing"
            )
        return RANDOM
    loaded = _load(init, config, model, len(class_names), image_shape, mesh)
    keep_head = init.head == "keep"
    if keep_head:
        _refuse_other_classes(loaded, class_names, init.path)
    try:
        kept = config.task.starting(model, loaded.variables, keep_head, image_shape)
    except UserError as error:
        raise UserError(
            f"{init.path} does not fit config.model {config.model.name}: {error}; set config.model, and of detectors "
            f"the anchors and layers of config.task, to what they were trained as"
        ) from None
    normalization = None
    if init.normalization == "weights" and loaded.normalization is not None:
        normalization = fitted(loaded.normalization, image_shape, config.task.any_size)
    head = f"a new head for {len(class_names)} classes" if init.head == "new" else "their head"
    normalized = "config.normalization" if normalization is None else "the normalisation of the weights"
    if parallel.is_main_process():
        print(f"starting from {init.path}, with {head} and {normalized}", file=sys.stderr)
    record = loaded.record | {"head": init.head, "normalization": "config" if normalization is None else "weights"}
    variables = parallel.to_global(jax.device_get(kept), parallel.replicated(mesh))
    return Start(variables, normalization, record)


def fitted(
    normalization: Normalization, image_shape: tuple[int, int, int], any_size: bool = False
) -> Normalization | None:
    """It, for images (H, W, C) of another size than that of its mean image, which is averaged over the pixels then.

    With ``any_size`` it is averaged in any case. None for images of other channels.
    """
    if normalization.mean.shape[-1] != image_shape[-1]:
        return None
    if normalization.mean.ndim == 3 and (any_size or normalization.mean.shape != image_shape):
        return normalization._replace(mean=normalization.mean.mean(axis=(0, 1)))
    return normalization


def _load(
    init: Weights, config: Config, model: Any, num_classes: int, image_shape: tuple[int, int, int], mesh: Mesh
) -> _Loaded:
    path = expanded(init.path)
    if path.is_dir() or init.path in included():
        return _of_workdir(find_run(path), init, config, model, mesh)
    if init.checkpoint != "latest":
        raise UserError(
            f"config.init.checkpoint is {init.checkpoint!r}, and {init.path} is no workdir but has one set of weights; "
            f"use --config.init.checkpoint=latest"
        )
    if path.is_file():
        return _of_file(path, init, config, num_classes, image_shape)
    if init.path.startswith(HUB):
        return _of_hub(init, config, num_classes, image_shape)
    raise UserError(
        f"config.init.path is {init.path!r}, and there is no such file of weights or workdir; correct it, or name a "
        f"repository of the Hugging Face Hub, {HUB}..."
    )


def _of_workdir(path: Path, init: Weights, config: Config, model: Any, mesh: Mesh) -> _Loaded:
    run = load_run(path, init.checkpoint, mesh=mesh)
    _refuse_other_network(run, config, model, path)
    record: dict[str, object] = {
        "kind": "workdir",
        "path": str(path.resolve()),
        "checkpoint": init.checkpoint,
        "step": run.step,
        "model": run.config.model.name,
    }
    return _Loaded(unstack_blocks(run.variables), run.class_names, run.normalize, record)


def _refuse_other_network(run: Network, config: Config, model: Any, path: Path) -> None:
    """Raises UserError unless the run's network computes what config.model's does, with the keys that make it so."""
    theirs, ours = run.config.task.networks(run.model), config.task.networks(model)
    if definition(next(iter(theirs.values()))) == definition(next(iter(ours.values()))):  # Several are the same.
        return
    was, now = (of.model.model_dump() | {"stride_placement": stride_placement(of)} for of in (run.config, config))
    keys = [key for key in was if key not in FREE and was[key] != now[key]]
    raise UserError(
        f"{path} does not fit config.model {config.model.name}: it is of another network; set "
        f"{' '.join(shlex.quote(f'--config.model.{key}={was[key]}') for key in keys)}"
    )


def _of_file(path: Path, init: Weights, config: Config, num_classes: int, image_shape: tuple[int, int, int]) -> _Loaded:
    note_differences(config)
    variables = _torch_variables(path, init, config, num_classes, image_shape)
    record: dict[str, object] = {"kind": "file", "path": str(path.resolve()), "sha256": _sha256(path)}
    return _Loaded(variables, None, None, record)


def _of_hub(init: Weights, config: Config, num_classes: int, image_shape: tuple[int, int, int]) -> _Loaded:
    found = find_weights(init.path, config, image_shape)
    variables = _torch_variables(found.path, init, config, num_classes, image_shape)
    return _Loaded(variables, None, found.normalization, {"kind": "hub", "name": init.path, "revision": found.revision})


def _torch_variables(
    path: Path, init: Weights, config: Config, num_classes: int, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """In the unrolled layout."""
    new = init.head == "new"
    variables = load_torch(
        config.model.name,
        path,
        num_classes if new else None,
        new_head=new,
        channels=image_shape[-1],
        **config.model.overrides,
    )
    return unstack_blocks(variables)


def _refuse_other_classes(loaded: _Loaded, class_names: list[str], path: str) -> None:
    fix = "use --config.init.head=new"
    head = loaded.variables["params"].get("head", {"kernel": np.zeros(0)})
    classes = head["kernel"].shape[-1] if loaded.class_names is None else len(loaded.class_names)
    if classes != len(class_names):
        raise UserError(
            f"config.init.head is 'keep', but {path} has a head for {classes} classes and the data have "
            f"{len(class_names)}; {fix}"
        )
    for theirs, ours in zip(loaded.class_names or class_names, class_names, strict=True):
        if theirs != ours:
            raise UserError(
                f"config.init.head is 'keep', but the run in {path} has the class {theirs!r} where the data have "
                f"{ours!r}; {fix}"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
