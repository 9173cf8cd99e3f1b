"""Error curves in the style of the paper's figures 1, 4 and 6: training error thin and dashed, test error bold."""

from pathlib import Path
from typing import Any

from resnet_jax.writers import read_metrics


def plot_errors(metrics: Path, picture: Path, title: str) -> None:
    """Draws the errors of a metrics.jsonl against the step, in percent, as a PNG."""
    from matplotlib.figure import Figure  # Slow to import, and needed once a run.

    records = read_metrics(metrics)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    styles: dict[str, tuple[str, dict[str, Any]]] = {
        "train_error": ("training", {"linewidth": 0.8, "linestyle": "--"}),
        "test_error": ("test", {"linewidth": 2.2}),
        "validation_error": ("validation", {"linewidth": 2.2}),
    }
    for name, (label, style) in styles.items():
        points = [(record["step"], record[name]) for record in records if name in record]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, color="tab:red", **style)
    axes.set(title=title, xlabel="step", ylabel="error (%)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend()
    figure.savefig(picture, dpi=150)
