"""Scores networks on a split, one or several together: what eval.py runs."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from resnet_jax import parallel
from resnet_jax.config import refuse_change, validate
from resnet_jax.data.dataset import Data, load_data
from resnet_jax.data.normalization import normalization
from resnet_jax.data.streaming import Photographs
from resnet_jax.errors import UserError
from resnet_jax.evaluation.classify import Scores, error_rates, log_add, make_evaluator
from resnet_jax.evaluation.networks import Network, load_run, load_weights
from resnet_jax.models import list_models

# What a run's config and the one it is scored with must agree in; how photographs are read may differ.
_MUST_AGREE = ("model.", "data.name", "data.normalization", "data.mean", "data.std", "data.holdout", "ema_decay")


class Scored(NamedTuple):
    """What came of it.

    record: {"model", "data", "split", "protocol", "weights", "checkpoint", "step", "num_examples", "top1_error",
    "top5_error", "loss", "compilations", "seconds"}.
    """

    record: dict[str, Any]
    scores: Scores
    data: Data
    networks: list[Network]


def score(
    config: ConfigDict,
    workdirs: list[Path] | None = None,
    torch_weights: list[str] | None = None,
    which: str = "latest",
    split: str | None = None,
    protocol: str = "single",
    allow_config_change: bool = False,
) -> Scored:
    """Evaluates an ensemble, by default of one, on a split under a protocol of ``protocols.NAMES``.

    Args:
        config: the data, and the model of ``torch_weights`` and of a single run.
        workdirs: runs, of which the "latest" or "best" checkpoint is taken (``which``). Several runs may be of
            different models; each has its own config's.
        torch_weights: files of PyTorch weights, each as FILE for config.model, or as MODEL=FILE.
        split: default the test set, or the validation set of photographs.

    The probabilities of all members are averaged.
    Raises UserError if there are no members, or if one does not fit.
    """
    workdirs, torch_weights = workdirs or [], torch_weights or []
    if not workdirs and not torch_weights:
        raise UserError("give a --workdir or --torch_weights, or several for an ensemble")
    start = time.perf_counter()
    mesh = parallel.data_mesh()
    validate(config, num_devices=1)  # The training batch is not used here.
    alone = len(workdirs) + len(torch_weights) == 1
    for workdir in workdirs if alone and not allow_config_change else ():
        refuse_change(config, workdir / "config.json", sections=_MUST_AGREE)
    # A run is found or missed before the data are loaded, which can take long.
    members = [load_run(workdir, which, config if alone else None, mesh) for workdir in workdirs]
    data = load_data(config)
    chosen = split or ("validation" if isinstance(data, Photographs) else "test")
    for text in torch_weights:
        named, path = _named_weights(config, text)
        members.append(load_weights(path, named, data.class_names, normalization(config, data), mesh))
    total: Any = None
    compilations = 0
    for network in members:
        if network.class_names != data.class_names:
            raise UserError(
                f"a network for {len(network.class_names)} classes cannot be scored on {config.data.name}, which has "
                f"{len(data.class_names)}, or others; use the data that it was trained on"
            )
        evaluate = make_evaluator(config, network.model, network.normalize, data, chosen, mesh, protocol)
        scores = evaluate(network.variables)
        compilations += len(scores.shapes)
        total = scores.log_probs if total is None else log_add(total, scores.log_probs)
    ensemble = scores._replace(log_probs=total - np.float32(np.log(len(members))))
    result: dict[str, Any] = {
        "model": " + ".join(network.config.model.name for network in members),
        "data": config.data.name,
        "split": chosen,
        "protocol": protocol,
        "weights": " + ".join([*map(str, workdirs), *torch_weights]),
        "checkpoint": which if workdirs else None,
        "step": _steps(members),
    }
    result |= error_rates(ensemble)
    result |= {"compilations": compilations, "seconds": round(time.perf_counter() - start, 1)}
    return Scored(result, ensemble, data, members)


def _named_weights(config: ConfigDict, text: str) -> tuple[ConfigDict, Path]:
    """The config and path that "FILE" or "MODEL=FILE" mean."""
    name, equals, path = text.partition("=")
    if not equals or name not in list_models():
        return config, Path(text)
    named = config.copy_and_resolve_references()
    named.model.name = name
    return named, Path(path)


def _steps(members: list[Network]) -> str | int | None:
    steps = [network.step for network in members if network.step is not None]
    return steps[0] if len(steps) == 1 else " + ".join(map(str, steps)) or None
