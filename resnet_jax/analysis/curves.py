"""The curves of a run in the style of Figures 1, 4 and 6: training error thin and dashed, test error bold."""

from pathlib import Path
from typing import Any

from resnet_jax.train.writers import read_metrics

_THIN: dict[str, Any] = {"linewidth": 0.8, "linestyle": "--"}
_BOLD: dict[str, Any] = {"linewidth": 2.2}
_COLOURS = ("tab:red", "tab:blue")


def plot_errors(metrics: Path, picture: Path, title: str, figures: tuple[str, ...] = ("error",)) -> None:
    """Draws ``figures`` of a metrics.jsonl, in training and evaluation, against the step, in percent, as a PNG."""
    from matplotlib.figure import Figure  # Slow to import, and needed once a run.

    records = read_metrics(metrics)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for figure_name, colour in zip(figures, _COLOURS, strict=False):
        for split, label, style in (
            ("train", "training", _THIN),
            ("test", "test", _BOLD),
            ("validation", "validation", _BOLD),
        ):
            name = f"{split}_{figure_name}"
            points = [(record["step"], record[name]) for record in records if name in record]
            if points:
                label = label if len(figures) == 1 else f"{label} {figure_name}"
                axes.plot(*zip(*points, strict=True), label=label, color=colour, **style)
    axes.set(title=title, xlabel="step", ylabel=f"{', '.join(figures)} (%)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend()
    figure.savefig(picture, dpi=150)
