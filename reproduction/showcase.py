"""One picture of a network trained on CIFAR-10: how it learned, what it confuses, and some of its predictions.

    python -m reproduction.showcase resnet20-cifar10 --record results/paper/resnet20-seed0.json --data_dir DIR \\
        --out results/resnet20-cifar10.png

The predictions are those of the first images of the test set, as they come, and of those that the network was surest
of and wrong about.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reproduction import paper
from reproduction.ledger import read_record
from reproduction.numbers import number
from resnet_jax.config import read_config
from resnet_jax.errors import UserError
from resnet_jax.evaluation.classify import Scores
from resnet_jax.experiment.exported import find_run
from resnet_jax.experiment.scoring import score

_COLUMNS, _ROWS = 6, 4  # Of predictions; half of the rows are of each kind.


def confusion(scores: Scores) -> np.ndarray:
    """(K, K) parts of the examples of each class, a row, that are said to be of each class, a column."""
    classes = scores.log_probs.shape[1]
    counts = np.zeros((classes, classes))
    np.add.at(counts, (scores.labels, scores.log_probs.argmax(axis=1)), 1)
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def chosen_examples(scores: Scores, count: int) -> tuple[list[int], list[int]]:
    """The first ``count`` examples, and the ``count`` surest of those that are wrong, surest first."""
    said, surest = scores.log_probs.argmax(axis=1), scores.log_probs.max(axis=1)
    wrong = np.flatnonzero(said != scores.labels)
    return list(range(count)), wrong[np.argsort(-surest[wrong], kind="stable")][:count].tolist()


def draw(
    path: Path,
    title: str,
    curves: Mapping[str, Any],
    scores: Scores,
    images: np.ndarray,
    class_names: list[str],
    published: float | None,
) -> None:
    """Writes a picture. ``curves``: a record's. images: (N, H, W, C) uint8. published: the paper's error, percent."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), layout="constrained")
    figure.suptitle(title, fontsize=14)
    parts: Any = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    top, below = parts
    left, right = top.subplots(1, 2, width_ratios=(1.35, 1))
    _draw_curves(left, curves, published)
    _draw_confusion(right, confusion(scores), class_names)
    firsts, wrong = chosen_examples(scores, _COLUMNS * _ROWS // 2)
    headings = ("The first test images, as they come", "The most confident errors (the true class in brackets)")
    for place, examples, heading in zip(below.subfigures(1, 2), (firsts, wrong), headings, strict=True):
        place.suptitle(heading, fontsize=11)
        for axes, example in zip(place.subplots(_ROWS // 2, _COLUMNS).flat, examples, strict=False):
            said = int(scores.log_probs[example].argmax())
            right_one = said == scores.labels[example]
            sure = f"{class_names[said]} {100 * np.exp(scores.log_probs[example, said]):.0f} %"
            axes.imshow(images[example].squeeze(), cmap="gray")
            label = sure if right_one else f"{sure}\n({class_names[scores.labels[example]]})"
            axes.set_title(label, fontsize=8, color="C2" if right_one else "C3")
        for axes in place.axes:
            axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_curves(axes: Any, curves: Mapping[str, Any], published: float | None) -> None:
    for name, style in (("train", {"linewidth": 0.9, "linestyle": "--"}), ("test", {"linewidth": 2.0})):
        axes.plot(*zip(*curves[name], strict=True), color="C0", label=f"{name} error", **style)
    if published is not None:
        axes.axhline(published, color="C1", linewidth=1, label=f"the paper's, {number(published)} %")
    axes.set(xlabel="step", ylabel="error (%)", ylim=(0, 40))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


def _draw_confusion(axes: Any, parts: np.ndarray, class_names: list[str]) -> None:
    errors = np.where(np.eye(len(parts), dtype=bool), np.nan, 100 * parts)
    axes.imshow(errors, cmap="Reds", vmin=0)
    for (i, j), part in np.ndenumerate(100 * parts):
        if part >= 1:
            dark = i != j and part > np.nanmax(errors) / 2
            axes.text(j, i, f"{part:.0f}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
    ticks = range(len(class_names))
    axes.set_xticks(ticks, class_names, rotation=90, fontsize=8)
    axes.set_yticks(ticks, class_names, fontsize=8)
    axes.set_title("% of each true class (row) predicted as (column)", fontsize=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", help="a network of the package, an exported one or a workdir")
    parser.add_argument("--record", type=Path, required=True, help="of its training, in the ledger")
    parser.add_argument("--data_dir", help="of TensorFlow Datasets; default as for train.py")
    parser.add_argument("--out", type=Path, required=True, help="a .png file")
    arguments = parser.parse_args()
    try:
        record = read_record(arguments.record)
        if record is None:
            raise UserError(f"there is no record {arguments.record}; correct the path")
        config = read_config(find_run(arguments.network) / "config.json")
        scored = score(config.model_copy(update={"data_dir": arguments.data_dir}), [Path(arguments.network)])
    except UserError as error:
        parser.error(str(error))
    dataset = scored.dataset
    result = scored.record
    title = (
        f"{result['model']} on {result['data']}, {record['steps']:,} of the recipe's {record['recipe_steps']:,} steps: "
        f"{result['top1_error']:.2f} % error on {result['num_examples']:,} test images"
    )
    published = paper.TABLES["table6"].errors.get(record["network"])
    images = dataset.resident(result["split"]).images
    draw(
        arguments.out, title, record["curves"], scored.scores, images, dataset.class_names,
        published.top1 if published else None,
    )  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
