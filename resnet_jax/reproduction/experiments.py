"""What the tables and figures of the paper train and score, and at which scales."""

import math
import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from resnet_jax.errors import UserError


class Run(NamedTuple):
    """A network trained once: a file of configs/ by its stem, and a seed."""

    config: str
    seed: int = 0

    @property
    def network(self) -> str:
        """ "resnet34a" of "resnet34a_imagenet"."""
        return self.config.partition("_")[0]

    @property
    def name(self) -> str:
        """What its workdir and its record are called."""
        return f"{self.network}-seed{self.seed}"


class Experiment(NamedTuple):
    """A table or figure: the configs it trains, and how their networks are scored.

    protocol: of ``evaluation.protocols``. seeds: runs of each config, by default. ensemble: all runs together are
    scored, too. responses: the layers' responses are measured.
    """

    title: str
    configs: tuple[str, ...]
    protocol: str = "single"
    seeds: int = 1
    ensemble: bool = False
    responses: bool = False


_BOTTLENECKS = ("resnet50_imagenet_paper", "resnet101_imagenet", "resnet152_imagenet")
_BEST = ("resnet34_imagenet", "resnet34c_imagenet", *_BOTTLENECKS)
_TWINS = ("plain18_imagenet", "plain34_imagenet", "resnet18a_imagenet", "resnet34a_imagenet")
_CIFAR = tuple(f"resnet{layers}_cifar10" for layers in (20, 32, 44, 56, 110, 1202))
_CIFAR_PLAIN = tuple(f"plain{layers}_cifar10" for layers in (20, 32, 44, 56))

EXPERIMENTS = {
    "table1": Experiment("Architectures, parameters and multiply-adds", ()),
    "table2": Experiment("Plain and residual networks on ImageNet, ten crops", _TWINS, "ten_crop"),
    "table3": Experiment(
        "Shortcuts and depths on ImageNet, ten crops",
        ("plain34_imagenet", "resnet34a_imagenet", *_BEST),
        "ten_crop",
    ),
    "table4": Experiment("Single models on ImageNet, several scales", _BEST, "multi_scale"),
    # Six networks, as in the paper; there they were of six depths, but for two of 152 layers.
    "table5": Experiment(
        "An ensemble on ImageNet, several scales", (*_BEST, "resnet152_imagenet"), "multi_scale", ensemble=True
    ),
    # The paper ran its 110-layer network five times.
    "table6": Experiment("Depth on CIFAR-10", (*_CIFAR, "highway20_cifar10", "highway32_cifar10"), seeds=5),
    "fig1": Experiment("Plain networks of 20 and 56 layers on CIFAR-10", ("plain20_cifar10", "plain56_cifar10")),
    "fig4": Experiment("Training on ImageNet: plain beside residual", _TWINS, "ten_crop"),
    "fig6": Experiment("Training on CIFAR-10: plain beside residual", (*_CIFAR_PLAIN, *_CIFAR)),
    "fig7": Experiment(
        "Layer responses on CIFAR-10",
        tuple(f"{name}_cifar10" for name in ("plain20", "plain56", "resnet20", "resnet56", "resnet110")),
        responses=True,
    ),
}


class Scale(NamedTuple):
    """How much of the paper's work is done: in words, and as keys of a config that differ from the recipe's."""

    statement: str
    overrides: Callable[[ConfigDict], dict[str, Any]]
    most_seeds: int | None = None


def _paper(config: ConfigDict) -> dict[str, Any]:
    return {}


def _shortened(part: int, evaluations: int) -> Callable[[ConfigDict], dict[str, Any]]:
    """1/``part`` of the recipe's steps; the learning rate falls at the same fractions of them."""

    def overrides(config: ConfigDict) -> dict[str, Any]:
        steps = config.steps // part
        keys = _every(steps, logs=100, evaluations=evaluations)
        if config.schedule.name == "plateau":  # There are too few evaluations to see one.
            keys |= {"schedule.name": "step"}
        return keys | {"schedule.boundaries": (steps // 2, steps * 3 // 4)}

    return overrides


def _smoke(config: ConfigDict) -> dict[str, Any]:
    photographs = config.data.name == "imagenet2012"
    overrides = _every(24, logs=6, evaluations=2)
    overrides |= {"batch_size": 32, "model.width": 4, "schedule.name": "step", "schedule.boundaries": (12, 18)}
    overrides |= {"model.bn_group_size": 16}
    if photographs:
        overrides |= {"data.name": "folder", "data.crop_size": 32, "data.shorter_side": (36, 48)}
        overrides |= {"data.eval_shorter_side": 36, "eval_batch_size": 40, "bn_recompute_batches": 2}
        return overrides | {"model.stage_sizes": (1, 1, 1, 1) if "18" in config.model.name else (2, 1, 1, 1)}
    n = (int("".join(filter(str.isdigit, config.model.name))) - 2) // 6
    overrides |= {"data.name": "digits", "data.flip": False, "data.pad": 2}
    return overrides | {"model.stage_sizes": (min(3, 1 + n // 9),) * 3}


def _every(steps: int, logs: int, evaluations: int) -> dict[str, Any]:
    evaluate_every = steps // evaluations
    intervals = {"eval_every": evaluate_every, "checkpoint_every": evaluate_every}
    return {"steps": steps, "log_every": steps // logs, **intervals}


SCALES = {
    "paper": Scale("The paper's recipes, whole.", _paper),
    "medium": Scale(
        "A MEDIUM run: 1/4 of the paper's iterations, the learning rate divided by 10 after 1/2 and 3/4 of them, on the "
        "whole data set.",
        _shortened(4, evaluations=16),
    ),
    "small": Scale(
        "A SMALL run: 1/20 of the paper's iterations, the learning rate divided by 10 after 1/2 and 3/4 of "
        "them, on the whole data set. Its errors are not the paper's; its networks can be compared with each other.",
        _shortened(20, evaluations=10),
    ),
    "smoke": Scale(
        "A SMOKE run: a few steps of tiny networks on scikit-learn's digits. It proves that the programs run; its "
        "numbers mean nothing.",
        _smoke,
        most_seeds=1,
    ),
}


def runs(experiment: str, scale: str, seeds: int | None = None, networks: list[str] | None = None) -> list[Run]:
    """The runs of an experiment, seed by seed, so that a comparison of all networks stands early.

    A config that is named twice is run with one seed more. ``networks`` limits them to those, such as "plain20".
    Raises UserError for networks that the experiment does not have, and for any choice among an ensemble's members.
    """
    configs = EXPERIMENTS[experiment].configs
    if EXPERIMENTS[experiment].ensemble and (seeds is not None or networks is not None):
        raise UserError(f"{experiment} is one ensemble of all its networks; leave --seeds and --networks out")
    known = {Run(config).network for config in configs}
    for network in [""] if networks == [] else networks or []:
        if network not in known:
            raise UserError(f"{experiment} has no network {network!r}; it has {', '.join(sorted(known))}")
    most = SCALES[scale].most_seeds or math.inf
    count = int(min(EXPERIMENTS[experiment].seeds, most)) if seeds is None else seeds
    found = []
    for seed in range(count):
        for i, config in enumerate(configs):
            run = Run(config, seed + configs[:i].count(config))
            if networks is None or run.network in networks:
                found.append(run)
    return list(dict.fromkeys(found))


def recipe(root: Path, run: Run) -> ConfigDict:
    """The config of a run at the paper's scale, out of ``root``/configs."""
    return runpy.run_path(str(root / "configs" / f"{run.config}.py"))["get_config"]()


def overrides(root: Path, run: Run, scale: str) -> dict[str, Any]:
    """The keys that a run of this scale sets besides its config file's."""
    seed = {"seed": run.seed} if run.seed else {}
    return seed | SCALES[scale].overrides(recipe(root, run))


def scaled(root: Path, run: Run, scale: str) -> ConfigDict:
    """The whole config of a run."""
    config = recipe(root, run)
    config.update_from_flattened_dict(overrides(root, run, scale))
    return config


def label(network: str) -> str:
    """ "plain-20", "ResNet-34 A" and so on: what the paper calls a network."""
    for prefix, title in (("plain", "plain"), ("resnet", "ResNet"), ("highway", "Highway"), ("vgg", "VGG")):
        if network.startswith(prefix):
            rest = network.removeprefix(prefix)
            digits = rest.rstrip("abc")
            option = {"18": " B", "34": " B"}.get(rest, f" {rest[len(digits) :].upper()}".rstrip())
            return f"{title}-{digits}" + (option if prefix == "resnet" else "")
    return network


def command(program: str, config: str, workdirs: list[Path], settings: Mapping[str, Any]) -> list[str]:
    """Arguments of train.py or eval.py, the program first."""
    arguments = [program, "--config", f"configs/{config}.py"]
    for workdir in workdirs:
        arguments += ["--workdir", str(workdir)]
    for key, value in settings.items():
        text = str(value).replace(" ", "") if isinstance(value, tuple) else str(value)
        arguments.append(f"--config.{key}={text}")
    return arguments
