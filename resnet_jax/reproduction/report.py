"""The report of a scale: each table and figure beside the paper's, out of the ledger alone."""

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
from resnet_jax.errors import UserError
from resnet_jax.files import replace_atomically
from resnet_jax.models import create_model
from resnet_jax.models.resnet import ResNet
from resnet_jax.reproduction import paper
from resnet_jax.reproduction.document import (
    Block,
    Commands,
    Heading,
    Paragraph,
    Picture,
    Table,
    to_html,
    to_markdown,
)
from resnet_jax.reproduction.experiments import EXPERIMENTS, SCALES, Run, label
from resnet_jax.reproduction.ledger import Record, read_ledger
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


def write_report(results: Path, scale: str) -> Path:
    """Writes RESULTS/SCALE/report.html, which needs no other file, and report.md with its pictures beside it."""
    folder = results / scale
    folder.mkdir(parents=True, exist_ok=True)
    blocks = _blocks(folder, scale, read_ledger(results, scale))
    for name, text in (("report.html", to_html(blocks)), ("report.md", to_markdown(blocks))):
        with replace_atomically(folder / name) as file:
            file.write(text.encode())
    return folder / "report.html"


README_MARKS = ("<!-- results: python reproduce.py report writes this table -->", "<!-- end of results -->")


def readme_table(results: Path) -> str:
    """Every network of the ledger, but for smoke runs, beside the paper's single-view or ten-crop error; Markdown."""
    rows = []
    for scale in ("paper", "small"):
        for network, runs in _by_network(read_ledger(results, scale)).items():
            published = paper.TABLE_6 | paper.TABLE_3 | paper.TABLE_2
            of_paper = published.get(network, paper.Error(None)).top1
            for protocol in ("single", "ten_crop", "multi_scale"):
                scored = [run for run in runs if protocol in run["results"]]
                if scored:
                    values = [run["results"][protocol]["top1_error"] for run in scored]
                    compared = protocol == ("single" if network in paper.TABLE_6 else "ten_crop")
                    rows.append(
                        [
                            label(network),
                            f"{scale}: {scored[0]['steps']:,} of {scored[0]['recipe_steps']:,} steps",
                            ", ".join(str(run["seed"]) for run in scored),
                            protocol,
                            mean_and_deviation(values),
                            _number(of_paper) if compared else "",
                            _hardware(scored[0]),
                        ]
                    )
    header = ["network", "scale", "seeds", "views", "top-1 error (%)", "the paper", "hardware"]
    return to_markdown([Table(header, rows)])


def update_readme(readme: Path, results: Path) -> None:
    """Writes the table between its two marks. Raises UserError if they are not there."""
    text = readme.read_text()
    before, first, rest = text.partition(README_MARKS[0])
    _, last, after = rest.partition(README_MARKS[1])
    if not (first and last):
        raise UserError(f"{readme} has no lines {' and '.join(README_MARKS)}; put them where the table is to be")
    with replace_atomically(readme) as file:
        file.write(f"{before}{first}\n\n{readme_table(results)}\n{last}{after}".encode())


def one_section(results: Path, scale: str, name: str) -> list[Block]:
    """A single table or figure, under the statement of its scale."""
    ledger = read_ledger(results, scale)
    blocks = section(name, scale, results / scale, _by_network(ledger), ledger)
    return [*blocks[:1], Paragraph(SCALES[scale].statement, strong=True), *blocks[1:]]


def _by_network(ledger: Mapping[str, Record]) -> Records:
    records: dict[str, list[Record]] = {}
    for record in sorted(ledger.values(), key=lambda record: record.get("seed", 0)):
        if "network" in record:
            records.setdefault(record["network"], []).append(record)
    return records


def _blocks(folder: Path, scale: str, ledger: Mapping[str, Record]) -> list[Block]:
    records = _by_network(ledger)
    blocks: list[Block] = [
        Heading(f"Deep Residual Learning, reproduced at {scale} scale", 1),
        Paragraph(SCALES[scale].statement, strong=True),
        Paragraph(
            f"Tables and figures of He, Zhang, Ren and Sun (arXiv 1512.03385), from {len(ledger)} finished runs. "
            "Errors are in percent. A difference is ours less the paper's. What has not been run is left out."
        ),
    ]
    for name in EXPERIMENTS:
        blocks += section(name, scale, folder, records, ledger)
    return blocks + _runs(ledger)


def section(name: str, scale: str, folder: Path, records: Records, ledger: Mapping[str, Record]) -> list[Block]:
    """A table or figure with what has been run of it; nothing if nothing has. Pictures are drawn into ``folder``."""
    if name == "table1":
        return table1()
    experiment = EXPERIMENTS[name]
    networks = dict.fromkeys(Run(config).network for config in experiment.configs)
    protocol, found = experiment.protocol, {}
    for network in networks:
        runs = [record for record in records.get(network, []) if protocol in record["results"]]
        if experiment.responses:
            runs = [record for record in runs if record.get("responses")]
        if runs:
            found[network] = runs
    if not found:
        return []
    heading = Heading(f"{'Table' if name.startswith('table') else 'Figure'} {name[-1]}: {experiment.title}")
    if name == "table5":
        return [heading, *_ensemble(ledger.get(ensemble_name(name)), protocol)]
    if name == "fig7":
        return [heading, *_figure7(folder, found)]
    if name.startswith("fig"):
        return [heading, *_error_figure(name, scale, folder, found)]
    return [heading, *_error_table(name, found, protocol)]


def _error_table(name: str, found: Records, protocol: str) -> list[Block]:
    published = {"table2": paper.TABLE_2, "table3": paper.TABLE_3, "table4": paper.TABLE_4, "table6": paper.TABLE_6}
    of_cifar, rows = name == "table6", []
    for network, runs in found.items():
        row = [label(network), f"{runs[0]['parameters']:,}", str(len(runs))]
        error = published[name].get(network, paper.Error(None))
        for key, of_paper in (("top1_error", error.top1), ("top5_error", error.top5))[: 1 if of_cifar else 2]:
            values = [run["results"][protocol][key] for run in runs]
            shown = _number(of_paper)
            if network == "resnet110":
                shown = paper.RESNET110_FIVE_RUNS
            row += [mean_and_deviation(values), shown, _difference(values, of_paper)]
        rows.append(row)
    cited: dict[str, list[str]] = {}
    if name == "table3":
        cited = {title: [_number(error.top1), _number(error.top5)] for title, error in paper.TABLE_3_CITED.items()}
    elif name == "table4":
        cited = {title: [_number(error.top1), _number(error.top5)] for title, error in paper.TABLE_4_CITED.items()}
    elif of_cifar:
        cited = {title: [error] for title, error in paper.TABLE_6_CITED.items()}
    for title, errors in cited.items():
        rows.append([f"{title}, cited", "", ""] + [cell for error in errors for cell in ("", error, "")])
    header = ["network", "parameters", "runs"]
    for place in ("top-1 error",) if of_cifar else ("top-1 error", "top-5 error"):
        header += [place, "paper", "difference"]
    text = "Several runs, of several seeds, are given as mean ± sample standard deviation."
    return [Paragraph(text), Table(header, rows)]


def _ensemble(record: Record | None, protocol: str) -> list[Block]:
    if record is None:
        return []
    errors = record["results"][protocol]
    row = [str(len(record["members"])), f"{errors['top1_error']:.2f}", f"{errors['top5_error']:.2f}"]
    text = f"Members: {', '.join(record['members'])}. The paper's errors are of the test set, whose labels are secret."
    header = ["networks", "top-1 error", "top-5 error", "paper, top-5", "difference"]
    return [
        Paragraph(text),
        Table(header, [[*row, f"{paper.TABLE_5_TOP5}", _difference([errors["top5_error"]], paper.TABLE_5_TOP5)]]),
    ]


def _error_figure(name: str, scale: str, folder: Path, found: Records) -> list[Block]:
    panels: dict[str, dict[str, list[Curves]]] = {}
    rows = []
    for network, runs in found.items():
        family = "plain networks" if network.startswith("plain") else "residual networks"
        curves = [Curves(run["curves"]["train"], run["curves"]["test"]) for run in runs]
        panels.setdefault(family, {})[label(network)] = curves
        train = [final_training_error(run) for run in runs]
        test = [run["curves"]["test"][-1][1] for run in runs]
        rows.append([label(network), str(len(runs)), mean_and_deviation(train), mean_and_deviation(test)])
    picture = folder / f"{name}.png"
    plot_comparison(picture, panels)
    caption = f"Thin and dashed: training error. Bold: test error. A line for each seed. Scale: {scale}."
    header = ["network", "runs", "training error at the end", "test error at the end"]
    text = (
        f"The training error is that of augmented images as they are trained on, over the last {_LAST_LOGS} logged "
        "intervals. Several runs are given as mean ± sample standard deviation."
    )
    blocks: list[Block] = [Picture(picture, caption), Table(header, rows), Paragraph(text)]
    return blocks + [Paragraph(sentence, strong=True) for sentence in degradation(found)]


def degradation(found: Records) -> list[str]:
    """What the runs say of the paper's claim, that deeper plain networks train worse and deeper residual ones do not.

    Of each kind the shallowest network is compared with the deepest, seed by seed, by training and by test error.
    """
    sentences = []
    for prefix, kind in (("plain", "Degradation of plain networks"), ("resnet", "Its cure by residual networks")):
        networks = sorted((name for name in found if name.startswith(prefix)), key=_layers)
        if len(networks) < 2:
            continue
        shallow, deep = networks[0], networks[-1]
        by_seed = [{run["seed"]: run for run in found[network]} for network in (shallow, deep)]
        seeds = sorted(by_seed[0].keys() & by_seed[1].keys())
        if not seeds:
            continue
        pairs = [(by_seed[0][seed], by_seed[1][seed]) for seed in seeds]
        train = [final_training_error(b) - final_training_error(a) for a, b in pairs]
        test = [b["curves"]["test"][-1][1] - a["curves"]["test"][-1][1] for a, b in pairs]
        worse = sum(x > 0 and y > 0 for x, y in zip(train, test, strict=True))
        better = sum(x < 0 and y < 0 for x, y in zip(train, test, strict=True))
        seen = worse if prefix == "plain" else better
        verdict = "seen" if seen == len(seeds) else "not seen" if seen == 0 else "seen in part"
        sentences.append(
            f"{kind}: {verdict}. Against {label(shallow)}, {label(deep)}'s training error differs by "
            f"{_signed(train)} and its test error by {_signed(test)} points (seeds {', '.join(map(str, seeds))}): the "
            f"deeper network is worse in both in {worse} of {len(seeds)}, and better in both in {better}."
        )
    return sentences


def _figure7(folder: Path, found: Records) -> list[Block]:
    responses = {label(network): runs[0]["responses"] for network, runs in found.items()}
    picture = folder / "fig7.png"
    plot_responses(picture, responses)
    rows = [
        [title, str(len(values)), *(f"{f(values.values()):.3f}" for f in (statistics.mean, statistics.median, max))]
        for title, values in responses.items()
    ]
    means = {title: statistics.mean(values.values()) for title, values in responses.items()}
    text = (
        "Standard deviation of each 3x3 layer's response over the test set, after batch normalisation and before the "
        "ReLU or the addition."
    )
    blocks: list[Block] = [Paragraph(text), Picture(picture, "Above: in the order of layers. Below: sorted by size.")]
    blocks.append(Table(["network", "layers", "mean", "median", "largest"], rows))
    plain = [mean for title, mean in means.items() if title.startswith("plain")]
    residual = [mean for title, mean in means.items() if title.startswith("ResNet")]
    if plain and residual:
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


def _runs(ledger: Mapping[str, Record]) -> list[Block]:
    trained = [record for record in ledger.values() if "network" in record]
    if not trained:
        return []
    rows = []
    for record in trained:
        environment = record["environment"]
        versions = environment["packages"]
        rows.append(
            [
                record["run"],
                f"{record['steps']:,}",
                f"{record['images_per_second']:.0f}",
                _hardware(record),
                f"jax {versions['jax']}, flax {versions['flax']}",
                (environment["commit"] or "unknown")[:10],
            ]
        )
    lines = [line for record in ledger.values() for line in record["commands"].values()]
    return [
        Heading("Runs"),
        Paragraph("Images/s are medians over the run, beside whatever else the machine did. Every run is resumable."),
        Table(["run", "steps", "images/s", "hardware", "versions", "commit"], rows),
        Heading("Commands"),
        Commands("\n".join(lines)),
    ]


def _hardware(record: Record) -> str:
    environment = record["environment"]
    devices = [kind.partition(": ")[2] or kind for kind in environment["devices"]]
    return environment["processor"] if devices[0] == "cpu" else f"{len(devices)} x {devices[0]}"


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


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.2f}"


def _layers(network: str) -> int:
    return int("".join(filter(str.isdigit, network)))
