"""The tables and figures, each as blocks of a document, out of the ledger's records alone."""

import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from reproduction import paper
from reproduction.claims import degradation
from reproduction.document import Block, Heading, Paragraph, Picture, Table
from reproduction.experiments import SCALES, network
from reproduction.ledger import Record
from reproduction.numbers import (
    LAST_LOGS,
    difference,
    final_test_error,
    final_training_error,
    mean_and_deviation,
    named,
    number,
)
from reproduction.pictures import Curves, draw_errors, draw_responses, top_of
from reproduction.running import ensemble_name
from reproduction.runs import Records, evaluated, found_runs, title
from resnet_jax.analysis.complexity import count_both
from resnet_jax.models import create_model

# Name and fields of create_model for each row of Table 1.
_ARCHITECTURES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ("vgg16", "vgg19", "plain18")),
    *(("resnet18", {"shortcut": shortcut}) for shortcut in "AB"),
    ("plain34", {}),
    *(("resnet34", {"shortcut": shortcut}) for shortcut in "ABC"),
    *((f"resnet{depth}", {}) for depth in (50, 101, 152)),
    *((f"resnet{depth}", {"stride_placement": "v1.5"}) for depth in (50, 101, 152)),
    *((f"resnet{depth}", {}) for depth in (20, 32, 44, 56, 110, 1202)),
    *((f"highway{depth}", {}) for depth in (20, 32)),
]


@cache
def table1() -> list[Block]:
    """Table 1 and the CIFAR networks: counted from the programs, beside the paper's rounded figures."""
    rows = []
    for name, fields in _ARCHITECTURES:
        model: Any = create_model(name, **fields).scanned()  # One block a stage to trace, where blocks are equal.
        size = model.image_size
        known = network({"model.name": name} | {f"model.{key}": value for key, value in fields.items()})
        plain_title = known.title.rstrip(" ABC")
        parameters, adds = count_both(model, size)
        published = paper.PARAMETERS.get(plain_title)
        as_published = "stride_placement" not in fields and fields.get("shortcut") != "C"
        of_paper = paper.FLOPS.get(plain_title) if as_published else None
        rows.append(
            [
                known.title + (f" {fields['stride_placement']}" if "stride_placement" in fields else ""),
                f"{size} x {size}",
                " ".join(map(str, model.stage_sizes)),
                " ".join(str(size // stride) for stride in model.strides),
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


def section(name: str, scale: str, folder: Path, ledger: Mapping[str, Record]) -> list[Block]:
    """A table or figure with what has been run of it; nothing if nothing has. Pictures are drawn into ``folder``.

    At scales without verdicts the errors stand beside the paper's, and no difference is taken.
    """
    if name == "table1":
        return table1()
    found, experiment = found_runs(name, ledger)
    ensemble = ledger.get(ensemble_name(name))
    if not found or (experiment.ensemble and ensemble is None):
        return []
    if name == "ingredients":
        return [Heading(experiment.title), *_ingredients(found, experiment.protocol)]
    heading = Heading(f"{'Table' if name.startswith('table') else 'Figure'} {name[-1]}: {experiment.title}")
    if ensemble is not None:
        return [heading, *_ensemble(ensemble, experiment.protocol)]
    if experiment.responses:
        return [heading, *_responses(name, scale, folder, found, ledger)]
    if name.startswith("fig"):
        return [heading, *_error_figure(name, scale, folder, found)]
    return [heading, *_error_table(name, found, experiment.protocol, SCALES[scale].verdicts)]


def _error_table(name: str, found: Records, protocol: str, compare: bool) -> list[Block]:
    published, of_cifar, rows = paper.TABLES[name], name == "table6", []
    figures = ("top1_error",) if of_cifar else ("top1_error", "top5_error")
    for member, runs in found.items():
        row = [title(runs[0]), f"{runs[0]['parameters']:,}", str(len(runs))]
        error = published.errors.get(member, paper.Error(None))
        for key, of_paper in zip(figures, error, strict=False):
            values = [run["results"][protocol][key] for run in runs]
            shown = number(of_paper)
            if of_cifar and member in paper.REPEATED:
                repeated = paper.REPEATED[member]
                shown += f" ({repeated.mean:.2f} ± {repeated.deviation:.2f})"
                of_paper = repeated.mean  # The best of five is not what a run, or a mean, is compared with.
            same_split = all(run["results"][protocol]["split"] == published.split for run in runs)
            row += [mean_and_deviation(values), shown, difference(values, of_paper) if compare and same_split else ""]
        rows.append(row)
    for cited_title, cited in published.cited.items():
        cells = [f"{cited_title}, cited", cited.parameters, "", "", cited.top1, ""]
        rows.append(cells if of_cifar else [*cells, "", cited.top5, ""])
    header = ["network", "parameters", "runs"]
    for place in ("top-1 error",) if of_cifar else ("top-1 error", "top-5 error"):
        header += [place, "paper", "difference"]
    text = "Several runs, of several seeds, are given as mean ± sample standard deviation."
    if of_cifar and compare:
        text += (
            " Of ResNet-110 the paper gives the best of five runs and, in brackets, their mean, with which ours is "
            "compared."
        )
    if not compare:
        header, rows = _without_differences(header, rows)
    return [Paragraph(text), Table(header, rows)]


def _ingredients(found: Records, protocol: str) -> list[Block]:
    """Each run's error beside that of the baseline of its seed."""

    def errors(runs: list[Record]) -> dict[int, float]:
        return {run["seed"]: run["results"][protocol]["top1_error"] for run in runs}

    baseline = errors(found.get("resnet20_baseline", []))
    lengths = sorted({f"{run['steps']:,}" for runs in found.values() for run in runs})
    rows = []
    for member, runs in found.items():
        mine = errors(runs)
        gains = [mine[seed] - baseline[seed] for seed in mine if seed in baseline]
        of_baseline = mean_and_deviation(gains) if gains and member != "resnet20_baseline" else ""
        ingredient = member.removeprefix("resnet20_").replace("_", " ")
        rows.append([ingredient, str(len(runs)), mean_and_deviation(list(mine.values())), of_baseline])
    text = (
        f"{' or '.join(lengths)} steps a run; the paper's recipe has 64,000. Each ingredient alone is added to the "
        "baseline, which is the paper's recipe, shortened; differences are to the baseline's run of the same seed, and "
        "below 0 where it helps. Several runs are given as mean ± sample standard deviation."
    )
    return [Paragraph(text), Table(["ingredient", "runs", "top-1 error", "difference"], rows)]


def _without_differences(header: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    kept = [i for i, column in enumerate(header) if column != "difference"]
    return [header[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _ensemble(record: Record, protocol: str) -> list[Block]:
    errors, published = record["results"][protocol], paper.TABLES["table5"]
    of_paper = published.errors[record["run"]].top5
    rows = [
        ["this ensemble", str(len(record["members"])), number(errors["top1_error"]), number(errors["top5_error"]), ""]
    ]
    rows += [["the paper's", "6", "", "", number(of_paper)]]
    rows += [[f"{name}, cited", "", "", "", cited.top5] for name, cited in published.cited.items()]
    text = (
        f"Members: {', '.join(record['members'])}. The paper's errors are of the test set, whose labels are secret, "
        f"and ours of the {errors['split']} set, so that no difference is taken. Two of the paper's six models are 152 "
        "layers deep; it does not name the others."
    )
    header = [
        "networks",
        "members",
        f"top-1 error, {errors['split']}",
        f"top-5 error, {errors['split']}",
        "top-5 error, test",
    ]
    return [Paragraph(text), Table(header, rows)]


def _error_figure(name: str, scale: str, folder: Path, found: Records) -> list[Block]:
    rows = []
    for member, runs in found.items():
        train = [final_training_error(run) for run in runs]
        test = [final_test_error(run) for run in runs]
        published = paper.TABLES["table6"].errors.get(member, paper.Error(None)).top1
        row = [title(runs[0]), ", ".join(str(run["seed"]) for run in runs), mean_and_deviation(train)]
        row += [paper.TRAINING_ERRORS.get(member, ""), mean_and_deviation(test)]
        rows.append([*row, paper.TEST_ERRORS.get(member, number(published)), _falls(runs)])
    header = ["network", "seeds", "training error", "paper", f"{evaluated(found)} error", "paper", "rate fell at"]
    if name == "fig4":  # The paper's curves are of the central crop, whose errors it gives nowhere as numbers.
        rows = [[*row[:5], "", row[6]] for row in rows]
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    header, rows = [header[i] for i in kept], [[row[i] for i in kept] for row in rows]
    paths, caption = _draw(name, scale, folder, found)
    text = (
        f"Errors at the end of training. The training error is that of augmented images as they are trained on, over "
        f"the last {LAST_LOGS} logged intervals. Several runs are given as mean ± sample standard deviation."
    )
    return [Picture(paths, caption), Table(header, rows), Paragraph(text)]


def _falls(runs: list[Record]) -> str:
    """The steps at which plateaus of the error lowered the learning rate, of each run; nothing for other schedules."""
    found = []
    for run in runs:
        if run["values"]["schedule.name"] == "plateau":
            rates = run.get("learning_rates", [])  # Older records do not have them.
            found.append(", ".join(f"{step:,}" for (_, was), (step, now) in pairwise(rates) if now < was))
    return "; ".join(found)


def _draw(name: str, scale: str, folder: Path, found: Records) -> tuple[list[Path], str]:
    """The panels of an error figure, and their caption."""
    curves = {
        member: [Curves(run["seed"], run["curves"]["train"], run["curves"]["test"]) for run in runs]
        for member, runs in found.items()
    }
    top = top_of(curves)  # One for all panels.
    length = f"{scale.capitalize()} scale, {_steps(found)} steps."
    paler = " Further seeds are paler." if any(len(runs) > 1 for runs in found.values()) else ""
    if name == "fig1":  # As in the paper, training beside test error.
        titled = {title(found[member][0]): runs for member, runs in curves.items()}
        paths = [folder / "fig1-training-error.svg", folder / "fig1-test-error.svg"]
        draw_errors(paths[0], "training error", titled, top, show=("train",))
        draw_errors(paths[1], f"{evaluated(found)} error", titled, top, show=("test",))
        return paths, f"{length}{paler}"
    panels: dict[str, dict[str, Sequence[Curves]]] = {}
    for member, runs in curves.items():
        known = network(found[member][0]["values"])
        panels.setdefault(known.kind, {})[known.title] = runs
    paths = []
    for kind, networks in panels.items():
        paths.append(folder / f"{name}-{kind}-networks.svg")
        draw_errors(paths[-1], f"{kind} networks", networks, top)
    return paths, f"Thin and dashed: training error. Bold: {evaluated(found)} error. {length}{paler}"


def _steps(found: Records) -> str:
    """How long the runs were, and how long the recipe is."""
    lengths = {(run["steps"], run["recipe_steps"]) for runs in found.values() for run in runs}
    return " or ".join(f"{steps:,} of {whole:,}" for steps, whole in sorted(lengths))


def _responses(name: str, scale: str, folder: Path, found: Records, ledger: Mapping[str, Record]) -> list[Block]:
    responses = {title(runs[0]): runs[0]["responses"] for runs in found.values()}
    paths = [folder / f"{name}-in-order.svg", folder / f"{name}-sorted.svg"]
    draw_responses(paths[0], "in the order of layers", {label: list(v.values()) for label, v in responses.items()})
    by_size = {label: sorted(values.values(), reverse=True) for label, values in responses.items()}
    draw_responses(paths[1], "sorted by size", by_size)
    rows = [
        [label, str(len(values)), *(f"{f(values.values()):.3f}" for f in (statistics.mean, statistics.median, max))]
        for label, values in responses.items()
    ]
    text = (
        "Standard deviation of each 3x3 layer's response over the test set, after batch normalisation and before the "
        "ReLU or the addition."
    )
    seeds = named(sorted({runs[0]["seed"] for runs in found.values()}))
    caption = f"{scale.capitalize()} scale, {_steps(found)} steps, {seeds}."
    blocks: list[Block] = [Paragraph(text), Picture(paths, caption)]
    blocks.append(Table(["network", "layers", "mean", "median", "largest"], rows))
    means: dict[str, list[float]] = {}
    for runs in found.values():
        mean = statistics.mean(runs[0]["responses"].values())
        means.setdefault(network(runs[0]["values"]).kind, []).append(mean)
    if len(means) == 2 and degradation("fig6", scale, ledger).told:
        plain, residual = means["plain"], means["residual"]
        sentences = (
            f"By the mean, {'all' if max(residual) < min(plain) else 'not all'} residual networks respond less than "
            "the plain ones."
        )
        if len(residual) > 1:
            falling = all(a > b for a, b in pairwise(residual))
            sentences += (
                f" Deeper residual networks {'respond' if falling else 'do not respond'} less than shallower ones."
            )
        blocks.append(Paragraph(sentences, strong=True))
    return blocks
