"""The tables and figures, each as blocks of a document, out of the ledger's records alone."""

import math
import statistics
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from resnet_jax.analysis.complexity import count_both
from resnet_jax.analysis.curves import Curves, plot_comparison
from resnet_jax.analysis.responses import plot_responses
from resnet_jax.models import create_model
from resnet_jax.models.resnet import ResNet
from resnet_jax.reproduction import paper
from resnet_jax.reproduction.document import Block, Heading, Paragraph, Picture, Table
from resnet_jax.reproduction.experiments import EXPERIMENTS, Experiment, Run, label
from resnet_jax.reproduction.ledger import Record
from resnet_jax.reproduction.running import ensemble_name

Records = Mapping[str, list[Record]]  # Network -> its runs, by seed.

# Name and fields of create_model for each row of Table 1.
_ARCHITECTURES: list[tuple[str, str, dict[str, Any]]] = [
    ("VGG-16", "vgg16", {}),
    ("VGG-19", "vgg19", {}),
    ("plain-18", "plain18", {}),
    ("ResNet-18 A", "resnet18", {"shortcut": "A"}),
    ("ResNet-18 B", "resnet18", {}),
    ("plain-34", "plain34", {}),
    ("ResNet-34 A", "resnet34", {"shortcut": "A"}),
    ("ResNet-34 B", "resnet34", {}),
    ("ResNet-34 C", "resnet34", {"shortcut": "C"}),
    *((f"ResNet-{n}", f"resnet{n}", {}) for n in (50, 101, 152)),
    *((f"ResNet-{n} v1.5", f"resnet{n}", {"stride_placement": "v1.5"}) for n in (50, 101, 152)),
    *((f"ResNet-{n}", f"resnet{n}", {}) for n in (20, 32, 44, 56, 110, 1202)),
    *((f"Highway-{n}", f"highway{n}", {}) for n in (20, 32)),
]

_LAST_LOGS = 5


@cache
def table1() -> list[Block]:
    """Table 1 and the CIFAR networks: counted from the programs, beside the paper's rounded figures."""
    rows = []
    for title, name, fields in _ARCHITECTURES:
        # One block a stage to trace, where blocks are equal.
        model = create_model(name, **fields, **({} if name.startswith("vgg") else {"scan_blocks": True}))
        size, plain_title = model.image_size, title.rstrip(" ABC").removesuffix(" v1.5")
        parameters, adds = count_both(model, size)
        published = paper.PARAMETERS.get(plain_title)
        of_paper = paper.FLOPS.get(plain_title) if "v1.5" not in title and " C" not in title else None
        rows.append(
            [
                title,
                f"{size} x {size}",
                " ".join(map(str, model.stage_sizes)),
                _map_sizes(model),
                f"{parameters:,}",
                "" if published is None else f"{published} M",
                f"{adds:,}",
                "" if of_paper is None else f"{of_paper} G",
            ]
        )
    header = ["network", "images", "blocks or layers a stage", "maps", "parameters", "paper", "multiply-adds", "paper"]
    text = (
        "Counted from the programs. Multiply-adds are those of convolutions and fully-connected layers, for one image. "
        "Letters are the shortcut options; v1.5 strides in the 3x3 convolution of a bottleneck."
    )
    return [Heading("Table 1: architectures"), Paragraph(text), Table(header, rows)]


def _map_sizes(model: Any) -> str:
    """Heights of the feature maps, of the stem and of each stage; those of VGG's stages before they are pooled."""
    if not isinstance(model, ResNet):
        strides = [2**i for i in range(len(model.stage_sizes))]
    elif model.stem == "imagenet":
        strides = [2, *(2 ** (i + 2) for i in range(len(model.stage_sizes)))]
    else:
        strides = [1, *(2**i for i in range(len(model.stage_sizes)))]
    return " ".join(str(model.image_size // stride) for stride in strides)


def by_network(ledger: Mapping[str, Record]) -> Records:
    """The runs of each network by seed; plain, residual and other networks each by depth. Ensembles are left out."""
    records: dict[str, list[Record]] = {}
    for record in sorted(ledger.values(), key=lambda record: record.get("seed", 0)):
        if "network" in record:
            records.setdefault(record["network"], []).append(record)
    return dict(sorted(records.items(), key=lambda item: (item[0].rstrip("abc0123456789"), _layers(item[0]), item[0])))


def section(name: str, scale: str, folder: Path, ledger: Mapping[str, Record]) -> list[Block]:
    """A table or figure with what has been run of it; nothing if nothing has. Pictures are drawn into ``folder``.

    A smoke run's numbers mean nothing, so that none of them is compared with the paper's or with another.
    """
    if name == "table1":
        return table1()
    found, experiment = found_runs(name, ledger)
    protocol = experiment.protocol
    ensemble = ledger.get(ensemble_name(name))
    if not found or (experiment.ensemble and ensemble is None):
        return []
    heading = Heading(f"{'Table' if name.startswith('table') else 'Figure'} {name[-1]}: {experiment.title}")
    compare = scale != "smoke"
    if ensemble is not None:
        return [heading, *_ensemble(ensemble, protocol, compare)]
    if experiment.responses:
        return [heading, *_responses(name, scale, folder, found, compare)]
    if name.startswith("fig"):
        return [heading, *_error_figure(name, scale, folder, found, compare)]
    return [heading, *_error_table(name, found, protocol, compare)]


def found_runs(name: str, ledger: Mapping[str, Record]) -> tuple[Records, Experiment]:
    """The runs that have what an experiment needs, in its order, and the experiment."""
    experiment, records = EXPERIMENTS[name], by_network(ledger)
    found = {}
    for network in dict.fromkeys(Run(config).network for config in experiment.configs):
        runs = [record for record in records.get(network, []) if experiment.protocol in record["results"]]
        if experiment.responses:
            runs = [record for record in runs if "responses" in record]
        if runs:
            found[network] = runs
    return found, experiment


def _error_table(name: str, found: Records, protocol: str, compare: bool) -> list[Block]:
    published = {"table2": paper.TABLE_2, "table3": paper.TABLE_3, "table4": paper.TABLE_4, "table6": paper.TABLE_6}
    of_cifar, rows = name == "table6", []
    for network, runs in found.items():
        row = [label(network), f"{runs[0]['parameters']:,}", str(len(runs))]
        error = published[name].get(network, paper.Error(None))
        for key, of_paper in (("top1_error", error.top1), ("top5_error", error.top5))[: 1 if of_cifar else 2]:
            values = [run["results"][protocol][key] for run in runs]
            shown = number(of_paper)
            if of_cifar and network in paper.TABLE_6_REPEATED:
                repeated = paper.TABLE_6_REPEATED[network]
                shown += f" ({repeated.mean:.2f} ± {repeated.deviation:.2f})"
                of_paper = of_paper if len(runs) == 1 else repeated.mean  # Like with like.
            row += [mean_and_deviation(values), shown, _difference(values, of_paper) if compare else ""]
        rows.append(row)
    cited: dict[str, list[str]] = {}
    if name == "table3":
        cited = {title: [number(error.top1), number(error.top5)] for title, error in paper.TABLE_3_CITED.items()}
    elif name == "table4":
        cited = {title: [number(error.top1), number(error.top5)] for title, error in paper.TABLE_4_CITED.items()}
    elif of_cifar:
        cited = {title: [error] for title, error in paper.TABLE_6_CITED.items()}
    for title, errors in cited.items():
        rows.append([f"{title}, cited", "", ""] + [cell for error in errors for cell in ("", error, "")])
    header = ["network", "parameters", "runs"]
    for place in ("top-1 error",) if of_cifar else ("top-1 error", "top-5 error"):
        header += [place, "paper", "difference"]
    text = "Several runs, of several seeds, are given as mean ± sample standard deviation."
    if of_cifar:
        text += (
            " Of ResNet-110 the paper gives the best of five runs and, in brackets, their mean, with which a mean of "
            "ours is compared."
        )
    return [Paragraph(text), Table(header, rows)]


def _ensemble(record: Record, protocol: str, compare: bool) -> list[Block]:
    errors = record["results"][protocol]
    row = [str(len(record["members"])), f"{errors['top1_error']:.2f}", f"{errors['top5_error']:.2f}"]
    text = f"Members: {', '.join(record['members'])}. The paper's errors are of the test set, whose labels are secret."
    header = ["networks", "top-1 error", "top-5 error", "paper, top-5", "difference"]
    difference = _difference([errors["top5_error"]], paper.TABLE_5_TOP5) if compare else ""
    return [
        Paragraph(text),
        Table(header, [[*row, f"{paper.TABLE_5_TOP5}", difference]]),
    ]


def _error_figure(name: str, scale: str, folder: Path, found: Records, compare: bool) -> list[Block]:
    panels: dict[str, dict[str, list[Curves]]] = {}
    rows = []
    for network, runs in found.items():
        family = "plain networks" if network.startswith("plain") else "residual networks"
        curves = [Curves(run["curves"]["train"], run["curves"]["test"]) for run in runs]
        panels.setdefault(family, {})[label(network)] = curves
        train = [final_training_error(run) for run in runs]
        test = [_final_test_error(run) for run in runs]
        rows.append([label(network), str(len(runs)), mean_and_deviation(train), mean_and_deviation(test)])
    picture = folder / f"{name}.png"
    plot_comparison(picture, panels, f"{scale} scale: {_steps(found)} steps")
    caption = f"Thin and dashed: training error. Bold: test error. A line for each seed. {scale.capitalize()} scale."
    header = ["network", "runs", "training error at the end", "test error at the end"]
    text = (
        f"The training error is that of augmented images as they are trained on, over the last {_LAST_LOGS} logged "
        "intervals. Several runs are given as mean ± sample standard deviation."
    )
    blocks: list[Block] = [Picture(picture, caption), Table(header, rows), Paragraph(text)]
    return blocks + [Paragraph(sentence, strong=True) for sentence in degradation(found) if compare]


def degradation(found: Records) -> list[str]:
    """What the runs say of the paper's claim, that deeper plain networks train worse and deeper residual ones do not.

    The deepest plain network is compared with the shallowest, and so are their residual twins, seed by seed, by
    training and by test error.
    """
    families = {
        "plain": {_layers(name): runs for name, runs in found.items() if name.startswith("plain")},
        "residual": {_layers(name): runs for name, runs in found.items() if name.startswith("resnet")},
    }
    depths = sorted(families["plain"].keys() & (families["residual"] or families["plain"]).keys())
    if len(depths) < 2:
        return []
    sentences, costs = [], {}
    for kind, networks in families.items():
        shallow, deep = ({run["seed"]: run for run in networks.get(depth, [])} for depth in (depths[0], depths[-1]))
        seeds = sorted(shallow.keys() & deep.keys())
        if not seeds:
            continue
        train = [final_training_error(deep[seed]) - final_training_error(shallow[seed]) for seed in seeds]
        test = [_final_test_error(deep[seed]) - _final_test_error(shallow[seed]) for seed in seeds]
        worse = sum(x > 0 and y > 0 for x, y in zip(train, test, strict=True))
        better = sum(x < 0 and y < 0 for x, y in zip(train, test, strict=True))
        seen = worse if kind == "plain" else better
        verdict = "seen" if seen == len(seeds) else "not seen" if seen == 0 else "seen in part"
        claim = "Deeper plain networks are worse" if kind == "plain" else "Deeper residual networks are better"
        sentences.append(
            f"{claim}: {verdict}. From {depths[0]} to {depths[-1]} layers the training error changes by "
            f"{_signed(train)} and the test error by {_signed(test)} points ({_named(seeds)})."
        )
        costs[kind] = statistics.mean(train), statistics.mean(test)
    if len(costs) == 2:
        (plain, plain_test), (residual, residual_test) = costs["plain"], costs["residual"]
        less = residual < plain and residual_test < plain_test
        sentences.append(
            f"With shortcuts depth costs {'less' if less else 'no less'}: on average it changes the training error by "
            f"{plain:+.2f} points without them and by {residual:+.2f} with them, the test error by {plain_test:+.2f} "
            f"and by {residual_test:+.2f}."
        )
    return sentences


def _final_test_error(record: Record) -> float:
    return record["curves"]["test"][-1][1]


def _steps(found: Records) -> str:
    """How long the runs were, and how long the recipe is."""
    lengths = {(run["steps"], run["recipe_steps"]) for runs in found.values() for run in runs}
    return " or ".join(f"{steps:,} of {whole:,}" for steps, whole in sorted(lengths))


def _responses(name: str, scale: str, folder: Path, found: Records, compare: bool) -> list[Block]:
    responses = {label(network): runs[0]["responses"] for network, runs in found.items()}
    picture = folder / f"{name}.png"
    plot_responses(
        picture,
        responses,
        f"{scale} scale: {_steps(found)} steps, {_named(sorted({runs[0]['seed'] for runs in found.values()}))}",
    )
    rows = [
        [title, str(len(values)), *(f"{f(values.values()):.3f}" for f in (statistics.mean, statistics.median, max))]
        for title, values in responses.items()
    ]
    means = {title: statistics.mean(values.values()) for title, values in responses.items()}
    text = (
        "Standard deviation of each 3x3 layer's response over the test set, after batch normalisation and before the "
        "ReLU or the addition."
    )
    caption = f"Above: in the order of layers. Below: sorted by size. {scale.capitalize()} scale."
    blocks: list[Block] = [Paragraph(text), Picture(picture, caption)]
    blocks.append(Table(["network", "layers", "mean", "median", "largest"], rows))
    plain = [mean for title, mean in means.items() if title.startswith("plain")]
    residual = [mean for title, mean in means.items() if title.startswith("ResNet")]
    if plain and residual and compare:
        smaller = max(residual) < min(plain)
        sentences = (
            f"By the mean, {'all' if smaller else 'not all'} residual networks respond less than the plain ones."
        )
        if len(residual) > 1:
            falling = all(a > b for a, b in pairwise(residual))
            sentences += (
                f" Deeper residual networks {'respond' if falling else 'do not respond'} less than shallower ones."
            )
        blocks.append(Paragraph(sentences, strong=True))
    return blocks


def hardware(record: Record) -> str:
    """What a run was trained on."""
    environment = record["environment"]
    devices = [kind.partition(": ")[2] or kind for kind in environment["devices"]]
    if devices[0] == "cpu":
        return environment["processor"] or "CPU"
    return f"{len(devices)} x {devices[0]}"


def final_training_error(record: Record) -> float:
    """The mean of the last logged training errors, in percent."""
    return statistics.mean(error for _, error in record["curves"]["train"][-_LAST_LOGS:])


def mean_and_deviation(values: list[float]) -> str:
    """ "8.75", or "6.61 ± 0.16" of several."""
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def _difference(values: list[float], of_paper: float | None) -> str:
    return "" if of_paper is None else f"{statistics.mean(values) - of_paper:+.2f}"


def _signed(values: list[float]) -> str:
    return ", ".join(f"{value:+.2f}" for value in values)


def number(value: float | None) -> str:
    """An error in percent; nothing where there is none."""
    return "" if value is None or math.isnan(value) else f"{value:.2f}"


def _named(seeds: list[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _layers(network: str) -> int:
    return int("".join(filter(str.isdigit, network)))
