"""What the tables and figures of the paper train and score, and at which scales."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from resnet_jax.config import Config, flatten, load_config, override
from resnet_jax.errors import UserError
from resnet_jax.models import variant


class Run(NamedTuple):
    """A network trained once: a member of a file of configs/ (its stem), and a seed."""

    family: str
    network: str
    seed: int = 0

    @property
    def config(self) -> str:
        """ "configs/cifar10.py:resnet20", as --config takes it."""
        return f"configs/{self.family}.py:{self.network}"

    @property
    def name(self) -> str:
        """What its workdir and its record are called."""
        return f"{self.network}-seed{self.seed}"


class Experiment(NamedTuple):
    """A table or figure: the configs it trains, each as FILE:MEMBER, and how their networks are scored.

    protocol: of ``evaluation.protocols``. seeds: runs of each config, by default. ensemble: all runs together are
    scored, too. responses: the layers' responses are measured. of_paper: it is in the paper, and so in the reports.
    """

    title: str
    configs: tuple[str, ...]
    protocol: str = "single"
    seeds: int = 1
    ensemble: bool = False
    responses: bool = False
    of_paper: bool = True

    @property
    def networks(self) -> list[str]:
        """The members of the configs, each once."""
        return list(dict.fromkeys(config.partition(":")[2] for config in self.configs))


def _members(family: str, *networks: str) -> tuple[str, ...]:
    return tuple(f"{family}:{network}" for network in networks)


_BEST = _members("imagenet_paper", "resnet34", "resnet34c", "resnet50", "resnet101", "resnet152")
_TWINS = _members("imagenet_paper", "plain18", "plain34", "resnet18a", "resnet34a")
_CIFAR = _members("cifar10", *(f"resnet{depth}" for depth in (20, 32, 44, 56, 110, 1202)))
_CIFAR_PLAIN = _members("cifar10", *(f"plain{depth}" for depth in (20, 32, 44, 56, 110)))

_INGREDIENTS = (
    *("resnet20_baseline", "resnet20_nesterov", "resnet20_weight_decay", "resnet20_sam", "resnet20_adamw"),
    *("resnet20_cosine", "resnet20_one_cycle", "resnet20_ema", "resnet20_label_smoothing", "resnet20_bce"),
    *("resnet20_mixup", "resnet20_cutmix", "resnet20_cutout", "resnet20_random_erasing", "resnet20_rand_augment"),
    *("resnet20_trivial_augment", "resnet20_color_jitter", "resnet20_repeats"),
)

EXPERIMENTS = {
    "table1": Experiment("Architectures, parameters and multiply-adds", ()),
    "table2": Experiment("Plain and residual networks on ImageNet, ten crops", _TWINS, "ten_crop"),
    "table3": Experiment(
        "Shortcuts and depths on ImageNet, ten crops",
        (*_members("imagenet_paper", "plain34", "resnet34a"), *_BEST),
        "ten_crop",
    ),
    "table4": Experiment("Single models on ImageNet, several scales", _BEST, "multi_scale"),
    # The paper's ensemble is of six models, two of them 152 layers deep; it does not name the other four. Here they
    # are the other networks of Table 4.
    "table5": Experiment("An ensemble on ImageNet, several scales", (*_BEST, _BEST[-1]), "multi_scale", ensemble=True),
    # The paper ran its 110-layer network five times.
    "table6": Experiment("Depth on CIFAR-10", (*_CIFAR, *_members("cifar10", "highway20", "highway32")), seeds=5),
    "fig1": Experiment("Plain networks of 20 and 56 layers on CIFAR-10", _members("cifar10", "plain20", "plain56")),
    "fig4": Experiment("Training on ImageNet: plain beside residual", _TWINS, "ten_crop"),
    "fig6": Experiment("Training on CIFAR-10: plain beside residual", (*_CIFAR_PLAIN, *_CIFAR)),
    "fig7": Experiment(
        "Layer responses on CIFAR-10",
        _members("cifar10", "plain20", "plain56", "resnet20", "resnet56", "resnet110"),
        responses=True,
    ),
    # Not of the paper: its recipe in a fortieth of the steps, and what came after it, one at a time.
    "ingredients": Experiment(
        "What each ingredient is worth: ResNet-20 on CIFAR-10",
        _members("cifar10_ingredients", *_INGREDIENTS),
        seeds=2,
        of_paper=False,
    ),
}


class Scale(NamedTuple):
    """How much of the paper's work is done.

    statement: in words. overrides: the keys of a config that differ from the recipe's, by dotted name. verdicts:
    whether what the runs show of the paper's claims is said, and their errors are compared with the paper's.
    """

    statement: str
    overrides: Callable[[Config], dict[str, Any]]
    verdicts: bool
    most_seeds: int | None = None


def _paper(config: Config) -> dict[str, Any]:
    return {}


def _shortened(part: int, evaluations: int) -> Callable[[Config], dict[str, Any]]:
    """1/``part`` of the recipe's steps; the learning rate falls at the same fractions of them.

    Where the recipe waits for a plateau it falls after 1/2 and 3/4 of them, as in the paper's recipe for CIFAR-10.
    """

    def overrides(config: Config) -> dict[str, Any]:
        steps = recipe_steps(config) // part
        keys = _every(steps, logs=100, evaluations=evaluations)
        values = flatten(config)
        if "schedule.peak_at" in values:
            keys |= {"schedule.peak_at": values["schedule.peak_at"] // part}
        if "schedule.boundaries" in values:
            keys |= {"schedule.boundaries": tuple(step // part for step in values["schedule.boundaries"])}
        if config.schedule.plateau:  # There are too few evaluations to see one.
            keys |= {"schedule.name": "step", "schedule.boundaries": (steps // 2, steps * 3 // 4)}
        return keys

    return overrides


def _smoke(config: Config) -> dict[str, Any]:
    # Starting up takes most of a smoke run. Networks of one block a stage share their compiled programs.
    known = variant(config.model.name)
    keys = _every(8, logs=4, evaluations=2)
    keys |= {"batch_size": 32, "model.width": 4, "schedule.name": "step", "schedule.boundaries": (4, 6)}
    keys |= {"model.bn_group_size": 16}
    if known.image_size == 32:
        # More only for the deepest, whose blocks are scanned and recomputed.
        keys |= {"model.stage_sizes": (3, 3, 3) if config.model.remat else (1, 1, 1)}
        return keys | {"data.name": "digits", "transforms.flip.probability": 0.0, "transforms.random_crop.pad": 2}
    keys |= {"data.name": "folder", "data.crop_size": 32, "data.crop.shorter_side": (36, 48)}
    keys |= {"data.eval_shorter_side": 36, "eval_batch_size": 40, "bn_recompute_batches": 2}
    return keys | {"model.stage_sizes": (1, 1, 1, 1) if known.depth == 18 else (2, 1, 1, 1)}


def _every(steps: int, logs: int, evaluations: int) -> dict[str, Any]:
    evaluate_every = max(1, steps // evaluations)
    intervals = {"eval_every": evaluate_every, "checkpoint_every": evaluate_every}
    return {"steps": steps, "log_every": max(1, steps // logs), **intervals}


SCALES = {
    "paper": Scale("The recipes of configs/, whole.", _paper, verdicts=True),
    "medium": Scale(
        "Medium scale: 1/4 of the recipe's iterations, with the learning rate lowered at the same fractions of them, "
        "on the whole data set.",
        _shortened(4, evaluations=16),
        verdicts=True,
    ),
    "small": Scale(
        "Small scale: 1/20 of the recipe's iterations, with the learning rate lowered at the same fractions of them, "
        "on the whole data set. It is for trying things: so short a training shows none of the paper's claims.",
        _shortened(20, evaluations=10),
        verdicts=False,
    ),
    "smoke": Scale(
        "Smoke scale: a few steps of tiny networks on scikit-learn's digits. It proves that the programs run; its "
        "numbers mean nothing.",
        _smoke,
        verdicts=False,
        most_seeds=1,
    ),
}


def runs(experiment: str, scale: str, seeds: int | None = None, networks: list[str] | None = None) -> list[Run]:
    """The runs of an experiment, seed by seed, so that a comparison of all networks stands early.

    A config that is named twice is run with one seed more. ``networks`` limits them to those, such as "plain20".
    Raises UserError for networks that the experiment does not have, and for any choice among an ensemble's members.
    """
    configs, known = EXPERIMENTS[experiment].configs, EXPERIMENTS[experiment].networks
    if EXPERIMENTS[experiment].ensemble and (seeds is not None or networks is not None):
        raise UserError(f"{experiment} is one ensemble of all its networks; leave --seeds and --networks out")
    for network in [""] if networks == [] else networks or []:
        if network not in known:
            raise UserError(f"{experiment} has no network {network!r}; it has {', '.join(sorted(known))}")
    most = SCALES[scale].most_seeds or math.inf
    count = int(min(EXPERIMENTS[experiment].seeds, most)) if seeds is None else seeds
    found = []
    for seed in range(count):
        for i, config in enumerate(configs):
            family, _, network = config.partition(":")
            if networks is None or network in networks:
                found.append(Run(family, network, seed + configs[:i].count(config)))
    return list(dict.fromkeys(found))


def recipe(root: Path, run: Run) -> Config:
    """The config of a run at the paper's scale, out of ``root``/configs."""
    return load_config(str(root / run.config))


def recipe_steps(config: Config) -> int:
    """The steps of a recipe. Raises UserError for one that counts in epochs, which are not known here."""
    if isinstance(config.steps, str):
        raise UserError(f"config.steps is {config.steps!r}; a recipe that is to be reproduced has a number of steps")
    return config.steps


def overrides(root: Path, run: Run, scale: str) -> dict[str, Any]:
    """The keys that a run of this scale sets besides its config file's."""
    seed = {"seed": run.seed} if run.seed else {}
    return seed | SCALES[scale].overrides(recipe(root, run))


def scaled(root: Path, run: Run, scale: str) -> Config:
    """The whole config of a run."""
    return override(recipe(root, run), overrides(root, run, scale))


class Network(NamedTuple):
    """What a network is in the paper's terms. kind: "plain", "residual", "highway" or "vgg"; title: "ResNet-34 A"."""

    kind: str
    depth: int
    title: str


_KINDS = {"none": ("plain", "plain"), "gated": ("highway", "Highway")}


def network(values: Mapping[str, Any]) -> Network:
    """The network of a config's ``flatten``ed values."""
    known = variant(values["model.name"])
    if known.family != "resnet":
        return Network(known.family, known.depth, f"{known.family.upper()}-{known.depth}")
    own = known.fields["shortcut"]
    shortcut = values.get("model.shortcut", own)
    kind, prefix = _KINDS.get(shortcut, ("residual", "ResNet"))
    # The paper has several options of its networks with basic blocks on ImageNet.
    lettered = kind == "residual" and (shortcut != own or (known.image_size == 224 and known.depth < 50))
    return Network(kind, known.depth, f"{prefix}-{known.depth}{f' {shortcut}' if lettered else ''}")


def title(root: Path, run: Run) -> str:
    """ "plain-20", "ResNet-34 A" and so on: what the paper calls a run's network."""
    return network(flatten(recipe(root, run))).title


def command(program: str, run: Run, workdirs: list[Path], settings: Mapping[str, Any]) -> list[str]:
    """Arguments of train.py or eval.py, the program first."""
    arguments = [program, "--config", run.config]
    for workdir in workdirs:
        arguments += ["--workdir", str(workdir)]
    for key, value in settings.items():
        text = str(value).replace(" ", "") if isinstance(value, tuple) else str(value)
        arguments.append(f"--config.{key}={text}")
    return arguments
