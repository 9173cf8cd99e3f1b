"""The error curves of a run in the style of Figures 1, 4 and 6: training error thin and dashed, test error bold."""

from pathlib import Path
from typing import Any

from resnet_jax.train.writers import read_metrics

_THIN: dict[str, Any] = {"linewidth": 0.8, "linestyle": "--"}
_BOLD: dict[str, Any] = {"linewidth": 2.2}


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
        points = [(record["step"], record[name]) for record in records if name in record]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, color="tab:red", **style)
    axes.set(title=title, xlabel="step", ylabel="error (%)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend()
    figure.savefig(picture, dpi=150)
