"""Scores networks on a split, one or several together: what eval.py runs."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resnet_jax import build, distributed, parallel
from resnet_jax.config import Config, override, refuse_change
from resnet_jax.data.dataset import Dataset
from resnet_jax.errors import UserError
from resnet_jax.experiment.agreement import agree_on_weights, program_facts, split_facts
from resnet_jax.experiment.exported import find_run
from resnet_jax.experiment.networks import (
    HUB,
    Network,
    find_weights,
    load_run,
    load_weights,
    refuse_other_network,
)
from resnet_jax.models import list_models, variant
from resnet_jax.tasks.task import Member
from resnet_jax.train.workdir import refuse_config_data

# What a run's config and the one it is scored with must agree in besides the network; how photographs are
# read may differ.
_MUST_AGREE = ("data.kind", "data.name", "data.holdout", "normalization.", "ema_decay")
_HELD_OUT = ("data.holdout", "data.validation_fraction")  # What a validation split is cut off by.


class Scored(NamedTuple):
    """The result of ``score``.

    record: {"model", "data", "split", "protocol", "weights", "checkpoint", "step", "num_examples", figures of the task
    ("top1_error", "top5_error" with more than 5 classes, "loss"; or "mAP", ...), "compilations", "seconds"}.
    scores: what they came of, ``evaluation.classify.Scores`` or the task's own. summary: the main figures, to read.
    """

    record: dict[str, Any]
    scores: Any
    dataset: Dataset
    networks: list[Network]
    summary: str


def score(
    config: Config,
    workdirs: Sequence[str | Path] | None = None,
    torch_weights: list[str] | None = None,
    which: str = "latest",
    split: str | None = None,
    protocol: str = "single",
    allow_config_change: bool = False,
    data: Dataset | None = None,
) -> Scored:
    """Evaluates an ensemble, by default of one, on a split under one of the task's protocols.

    Args:
        config: the data, and the model of ``torch_weights`` and of a single run.
        workdirs: runs, of which the "latest" or "best" checkpoint is taken (``which``). Several runs may be of
            different models; each has its own config's.
        torch_weights: PyTorch weights as ``networks.find_weights`` takes them, each for config.model, or as
            MODEL=WEIGHTS. A repository brings its normalisation along.
        split: default the test set, or the validation set of photographs.
        data: scored on instead of config.data.

    The probabilities of all members are averaged.

    In a job of several processes all must have the same config, code, data, checkpoints and arguments.

    Raises UserError if there are no members, or if one does not fit.
    """
    workdirs, torch_weights = workdirs or [], torch_weights or []
    if not workdirs and not torch_weights:
        raise UserError("give a --workdir or --torch_weights, or several for an ensemble")
    start = time.perf_counter()
    mesh = parallel.data_mesh()
    build.check(config, num_devices=1)  # The training batch is not used here.
    if distributed.active():  # Before the checkpoints, which are restored together.
        counts = {"workdirs": len(workdirs), "torch_weights": len(torch_weights)}
        asked = counts | {"which": which, "split": split, "protocol": protocol}
        arguments = {f"the argument {name}": repr(value) for name, value in asked.items()}
        distributed.agree(program_facts(config) | arguments)
    alone = len(workdirs) + len(torch_weights) == 1
    for workdir in workdirs:  # A run is found or missed before the data are loaded, which can take long.
        folder = find_run(workdir)
        if data is None and not allow_config_change:
            refuse_config_data(folder)
        if alone and not allow_config_change:
            refuse_other_network(config, folder, sections=_MUST_AGREE)
    members = [load_run(workdir, which, config if alone else None, mesh, fast=True) for workdir in workdirs]
    dataset = build.make_dataset(config) if data is None else data
    chosen = split or dataset.test_split
    if chosen == "validation" and not allow_config_change:  # Of an ensemble, too: none may have trained on it.
        for workdir in workdirs:
            refuse_change(config, find_run(workdir) / "config.json", sections=_HELD_OUT)
    for text in torch_weights:
        named, name = _named_weights(config, text)
        weights = find_weights(name, named, dataset.image_shape)
        normalize = weights.normalization or build.make_normalization(config, dataset)
        members.append(load_weights(weights.path, named, dataset.class_names, normalize, mesh, dataset.image_shape))
    for network in members:
        if network.class_names != dataset.class_names:
            raise UserError(
                f"a network for {len(network.class_names)} classes cannot be scored on {dataset.name}, which has "
                f"{len(dataset.class_names)}, or others; use the data that it was trained on"
            )
    if distributed.active():
        distributed.agree(split_facts(dataset, chosen) | {"the step of the checkpoints": str(_steps(members))})
        for number, network in enumerate(members, start=1):
            agree_on_weights(f"network {number}", network.variables, network.normalize)
    found = config.task.score(
        [Member(network.model, network.normalize, network.variables) for network in members],
        dataset,
        chosen,
        mesh,
        config.eval_batch_size,
        protocol,
    )
    result: dict[str, Any] = {
        "model": " + ".join(network.config.model.name for network in members),
        "data": dataset.name,
        "split": chosen,
        "protocol": protocol,
        "weights": " + ".join([*map(str, workdirs), *torch_weights]),
        "checkpoint": which if workdirs else None,
        "step": _steps(members),
    }
    result |= found.figures
    result |= {"seconds": round(time.perf_counter() - start, 1)}
    return Scored(result, found.details, dataset, members, found.summary)


def _named_weights(config: Config, text: str) -> tuple[Config, str]:
    """The config and the weights that "WEIGHTS" or "MODEL=WEIGHTS" mean."""
    name, equals, path = text.partition("=")
    if not equals or name not in list_models():
        return config, text
    changed: dict[str, Any] = {"model.name": name}
    if "stride_placement" not in variant(name).own_fields:
        changed |= {"model.stride_placement": None}
    elif path.startswith(HUB):
        changed |= {"model.stride_placement": "v1.5"}  # All of timm's.
    return override(config, changed), path


def _steps(members: list[Network]) -> str | int | None:
    steps = [network.step for network in members if network.step is not None]
    return steps[0] if len(steps) == 1 else " + ".join(map(str, steps)) or None
