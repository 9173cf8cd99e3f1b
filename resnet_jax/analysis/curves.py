"""Error curves in the style of the paper's figures 1, 4 and 6: training error thin and dashed, test error bold."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resnet_jax.train.writers import read_metrics

Points = Sequence[tuple[int, float]]


class Curves(NamedTuple):
    """Errors of one run, in percent, as (step, error); ``test`` are those of the split it was evaluated on."""

    train: Points
    test: Points


def plot_errors(metrics: Path, picture: Path, title: str) -> None:
    """Draws the errors of a metrics.jsonl against the step, in percent, as a PNG."""
    from matplotlib.figure import Figure  # Slow to import, and needed once a run.

    records = read_metrics(metrics)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, label, style in (
        ("train_error", "training", _THIN),
        ("test_error", "test", _BOLD),
        ("validation_error", "validation", _BOLD),
    ):
        _draw(axes, [(record["step"], record[name]) for record in records if name in record], style, "tab:red", label)
    _finish(axes, title)
    figure.savefig(picture, dpi=150)


def plot_comparison(picture: Path, panels: Mapping[str, Mapping[str, Sequence[Curves]]], title: str = "") -> None:
    """Draws panels side by side on one scale, as in Figures 4 and 6: panel title -> network -> a run for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)
    for axes, (panel, networks) in zip(grid[0], panels.items(), strict=True):
        for number, (label, runs) in enumerate(networks.items()):
            for i, run in enumerate(runs):
                _draw(axes, run.train, _THIN, f"C{number}", None)
                _draw(axes, run.test, _BOLD, f"C{number}", None if i else label)
        _finish(axes, panel)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)


_THIN: dict[str, Any] = {"linewidth": 0.8, "linestyle": "--"}
_BOLD: dict[str, Any] = {"linewidth": 2.2}


def _draw(axes: Any, points: Points, style: dict[str, Any], color: str, label: str | None) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), label=label, color=color, **style)


def _finish(axes: Any, title: str) -> None:
    axes.set(title=title, xlabel="step", ylabel="error (%)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend()
