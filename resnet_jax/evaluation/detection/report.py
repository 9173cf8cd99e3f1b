"""What an evaluation of detections leaves for people: a table of classes, curves, and photographs with boxes."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.data.decode.boxes import whole_box
from resnet_jax.data.decode.images import crop_and_resize
from resnet_jax.evaluation.detection.detections import Detections
from resnet_jax.evaluation.detection.voc import ClassScore, mean_average_precision
from resnet_jax.files import replace_atomically

# Of classes, by label: to be told apart on photographs, also by most people with a colour deficiency.
_COLOURS = (
    "#ff4d4d",
    "#3da5ff",
    "#ffd000",
    "#00c48c",
    "#ff7bd5",
    "#ff8c1a",
    "#9b7bff",
    "#b6e000",
    "#00d5e8",
    "#ffffff",
)


def write_class_table(
    path: Path,
    class_names: Sequence[str],
    scores: Sequence[ClassScore],
    more: Mapping[str, Sequence[float] | np.ndarray] | None = None,
) -> None:
    """Writes a CSV file with a line for each class, and one of their mean.

    The class, its objects and detections, its average precision, and columns of further figures, one for each class,
    such as {"coco_ap": ...}. A figure that is NaN is left empty, and is in no mean.
    """
    columns = {"average_precision": [score.average_precision for score in scores], **(more or {})}
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["class", "objects", "detections", *columns])
    for label, (name, score) in enumerate(zip(class_names, scores, strict=True)):
        figures = [_written(values[label]) for values in columns.values()]
        writer.writerow([name, score.num_objects, len(score.recall), *figures])
    totals = [sum(score.num_objects for score in scores), sum(len(score.recall) for score in scores)]
    means = [_written(_mean(values)) for values in columns.values()]
    writer.writerow(["mean", *totals, *means])
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(path) as file:
        file.write(text.getvalue().encode(errors="surrogateescape"))


def _mean(values: Sequence[float] | np.ndarray) -> float:
    known = [value for value in values if value == value]
    return float(np.mean(known)) if known else float("nan")


def _written(value: float) -> str:
    return "" if value != value else f"{value:.6f}"


def plot_precision_recall(path: Path, class_names: Sequence[str], scores: Sequence[ClassScore], title: str) -> None:
    """Draws the curve of each class of which an object counts, as a PNG; with a legend for up to ten of them."""
    from matplotlib.figure import Figure  # Slow to import, and needed once an evaluation.

    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    shown = [label for label, score in enumerate(scores) if score.num_objects]
    for label in shown:
        score = scores[label]
        recall, precision = np.concatenate([[0], score.recall]), np.concatenate([score.precision[:1], score.precision])
        if len(score.recall):
            name = f"{class_names[label]} ({100 * score.average_precision:.1f})"
            axes.plot(recall, precision, linewidth=1.6 if len(shown) <= 10 else 0.6, label=name)
    axes.set(title=f"{title}, mean {100 * mean_average_precision(scores):.1f}", xlabel="recall", ylabel="precision")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    if axes.has_data() and len(shown) <= 10:
        axes.legend(title="class (average precision, %)", loc="lower left")
    figure.savefig(path, dpi=150)


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    scores: np.ndarray | None = None,
) -> np.ndarray:
    """A copy of a photograph (H, W, 3) uint8 with boxes (n, 4) in its pixels, coloured and named by class.

    ``scores`` (n,) are written beside the names, and the surest is drawn last.
    """
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    picture = PIL.Image.fromarray(image)
    pen = PIL.ImageDraw.Draw(picture)
    thick = max(1, round(min(image.shape[:2]) / 250))
    font: Any = PIL.ImageFont.load_default(size=max(9, min(image.shape[:2]) // 38))
    order = range(len(boxes)) if scores is None else np.argsort(scores, kind="stable")
    for number in order:
        x1, y1, x2, y2 = (float(corner) for corner in boxes[number])
        colour = _COLOURS[int(labels[number]) % len(_COLOURS)]
        # Pillow's corners are pixels inside; a box may have been predicted narrower than one.
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=thick)
        caption = class_names[int(labels[number])] + ("" if scores is None else f" {scores[number]:.2f}")
        left, top, right, bottom = pen.textbbox((0, 0), caption, font=font)
        width, height = right - left + 2, bottom - top + 2
        place = max(0.0, min(x1, image.shape[1] - width)), y1 - height if y1 >= height else y1
        pen.rectangle((*place, place[0] + width, place[1] + height), fill=colour)
        pen.text((place[0] + 1 - left, place[1] + 1 - top), caption, fill="black", font=font)
    return np.asarray(picture)


def draw_detections(source: Path, found: Detections, class_names: Sequence[str], path: Path) -> None:
    """Writes a PNG file: the photograph in the file ``source`` with the boxes that were found in it."""
    import PIL.Image

    image = crop_and_resize(source.read_bytes(), whole_box)
    drawn = draw_boxes(image, found.boxes, found.labels, class_names, found.scores)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(path) as file:
        PIL.Image.fromarray(drawn).save(file, format="png")
