"""The figures as vector pictures: error curves in the style of Figures 1, 4 and 6, and the responses of Figure 7."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Points = Sequence[Sequence[float]]  # (step, error in percent)


class Curves(NamedTuple):
    """Errors of one run in percent; ``test`` are those of the split it was evaluated on."""

    seed: int
    train: Points
    test: Points


_THIN: dict[str, Any] = {"linewidth": 0.9, "linestyle": (0, (4, 2))}
_BOLD: dict[str, Any] = {"linewidth": 2.0}
_MOST_LABELS = 8  # Of single seeds in a picture; more are labelled by network.


def draw_errors(
    path: Path,
    title: str,
    networks: Mapping[str, Sequence[Curves]],
    top: float,
    show: Sequence[str] = ("train", "test"),
) -> None:
    """Draws the training error thin and dashed and the test error bold, of each network a curve a seed, labelled.

    ``show`` limits it to one of the two. Further seeds are paler. ``top``: of the axis, in percent; what is above it
    is cut off, as where training begins.
    """
    figure, axes = _axes(title, "step", "error (%)")
    ends: list[tuple[float, str, Any]] = []
    single = sum(len(runs) for runs in networks.values()) <= _MOST_LABELS
    for number, (label, runs) in enumerate(networks.items()):
        for i, run in enumerate(runs):
            style = {"color": f"C{number}", "alpha": max(0.35, 1 - 0.35 * i)}
            for name, points, width in (("train", run.train, _THIN), ("test", run.test, _BOLD)):
                if points and name in show:
                    axes.plot(*zip(*points, strict=True), **style, **width)
            end = (run.test if "test" in show else run.train)[-1][1]
            if single:
                ends.append((end, f"{label}, seed {run.seed}", style["color"]))
        if not single:
            last = [(run.test if "test" in show else run.train)[-1][1] for run in runs]
            seeds = ", ".join(str(run.seed) for run in runs)
            text = f"{label}, seed{'s' if len(runs) > 1 else ''} {seeds}"
            ends.append((sum(last) / len(last), text, f"C{number}"))
    axes.set_ylim(0, top)
    _label_ends(axes, ends, top)
    _save(figure, path)


def top_of(networks: Mapping[str, Sequence[Curves]]) -> float:
    """The upper end of an axis of errors, in percent, that shows the second half of all curves."""
    found = [0.0]
    for runs in networks.values():
        for points in (points for run in runs for points in (run.train, run.test) if points):
            found += [error for step, error in points if step >= points[-1][0] / 2]
    return next(top for top in (20.0, 40.0, 60.0, 80.0, 100.0) if top >= max(found) or top == 100)


def draw_responses(path: Path, title: str, networks: Mapping[str, Sequence[float]]) -> None:
    """Draws the standard deviation of each layer's response, by layer: dashed for plain networks, with a legend."""
    figure, axes = _axes(title, "layer", "standard deviation")
    for label, values in networks.items():
        style: dict[str, Any] = {"linewidth": 1.4, "linestyle": "--" if label.startswith("plain") else "-"}
        axes.plot(range(1, len(values) + 1), list(values), label=label, **style)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    _save(figure, path)


def _axes(title: str, x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # Slow to import.

    figure = Figure(figsize=(5.4, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11)
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.25)
    axes.margins(x=0.01)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _label_ends(axes: Any, ends: list[tuple[float, str, Any]], top: float) -> None:
    """Names the curves at their right ends, apart from each other, by a line to where the curve ends."""
    places = [end for end, _, _ in sorted(ends)]
    for _ in range(200):  # Neighbours push each other apart.
        for i in range(len(places) - 1):
            lacking = 0.055 * top - (places[i + 1] - places[i])
            if lacking > 0:
                places[i], places[i + 1] = places[i] - lacking / 2, places[i + 1] + lacking / 2
    for place, (end, text, color) in zip(places, sorted(ends), strict=True):
        axes.annotate(
            text,
            xy=(1.0, min(end, top)),
            xytext=(1.03, place),
            xycoords=("axes fraction", "data"),
            textcoords=("axes fraction", "data"),
            color=color,
            fontsize=9,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.6,
                "shrinkA": 0,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def _save(figure: Any, path: Path) -> None:
    """The same bytes for the same figure; text stays text."""
    import matplotlib

    path.parent.mkdir(parents=True, exist_ok=True)
    settings: Any = {"svg.hashsalt": path.name, "svg.fonttype": "none", "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
