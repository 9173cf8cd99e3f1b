"""The best classes of any photographs: what predict.py prints and draws."""

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import PIL.Image

from resnet_jax.data.decode.boxes import Look
from resnet_jax.data.decode.images import UnreadableImage, crop_and_resize
from resnet_jax.data.normalization import Normalization
from resnet_jax.data.sources.folder import photographs
from resnet_jax.errors import UserError, one_line
from resnet_jax.evaluation.protocols.protocol import log_probabilities
from resnet_jax.files import replace_atomically
from resnet_jax.models import Model

BATCH_SIZE = 16
_LONGEST_NAME = 200  # Bytes of a file's name, of the 255 that file systems allow; it gets a number and a suffix.


class Prediction(NamedTuple):
    """The best classes of one photograph, best first, and their probabilities."""

    path: Path
    classes: list[str]
    probabilities: list[float]


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files among ``paths``, and the photographs in the folders among them, at any depth, sorted; no hidden ones.

    Raises UserError for a path that is neither, and where there are no photographs.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(map(Path, photographs(path)))
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"there is no file or folder {path}; correct the path")
    if not found:
        raise UserError(f"there are no photographs in {', '.join(map(str, paths)) or 'no path'}; name files or folders")
    return found


def predict(
    model: Model,
    variables: Any,
    normalize: Normalization,
    class_names: Sequence[str],
    paths: Sequence[Path],
    look: Look,
    top: int = 5,
) -> Iterator[Prediction]:
    """The ``top`` best classes of the central crop of each photograph, as evaluation with one crop sees it.

    Args:
        model, variables, normalize: the network and what it reads, as in ``experiment.networks.Network``.
        class_names: in the order of its outputs.
        paths: files.
        look: what is seen of each, all resized to the same size.

    A file that cannot be decoded is named on stderr and skipped; raises UserError if none can, and for a network whose
    images are neither in colour nor in grey. Where ``normalize`` is
    of one channel, the network sees the photographs in grey.
    """
    if len(normalize.std) not in (1, 3):
        raise UserError(f"the network's images have {len(normalize.std)} channels; photographs have 3, or 1 in grey")
    score = jax.jit(lambda variables, images: log_probabilities(model, variables, normalize(images)))
    found, size = False, look.resized(1, 1)  # The same for every photograph.
    for start in range(0, len(paths), BATCH_SIZE):
        images = np.zeros((BATCH_SIZE, *size, len(normalize.std)), np.uint8)  # One size, so one compilation.
        readable: list[Path] = []
        for path in paths[start : start + BATCH_SIZE]:
            try:
                pixels = crop_and_resize(path.read_bytes(), look.box, size, interpolation=look.interpolation)
                images[len(readable)] = _grey(pixels) if images.shape[-1] == 1 else pixels
                readable.append(path)
            except (UnreadableImage, OSError) as error:
                print(f"warning: {path} cannot be decoded ({one_line(error)})", file=sys.stderr)
        if not readable:
            continue
        found = True
        log_probs = np.asarray(score(variables, images))
        for path, row in zip(readable, log_probs, strict=False):
            best = np.argsort(-row, kind="stable")[:top]
            yield Prediction(path, [class_names[i] for i in best], [float(np.exp(row[i])) for i in best])
    if not found:
        raise UserError(f"none of {len(paths)} files can be decoded; name photographs")


def _grey(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) to (H, W, 1) uint8: luma (ITU-R BT.601), as grey JPEG files have it."""
    return np.asarray(PIL.Image.fromarray(pixels).convert("L"))[..., None]


def picture_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A file name for the picture of each photograph: its path with "_" for what separates folders.

    Where another path comes to the same, a number is added.
    """
    names: dict[Path, str] = {}
    for path in dict.fromkeys(paths):
        plain = _short("_".join(part for part in path.parts if part not in (path.anchor, "..")))
        candidates = (f"{plain}{number}.png" for number in chain([""], (f"-{number}" for number in count(2))))
        names[path] = next(name for name in candidates if name not in names.values())
    return names


def _short(name: str) -> str:
    """The name of a file that every file system takes: a long one by its end, and a digest of all of it."""
    encoded = os.fsencode(name)
    if len(encoded) <= _LONGEST_NAME:
        return name
    return f"{hashlib.sha256(encoded).hexdigest()[:12]}_{encoded[-_LONGEST_NAME:].decode(errors='ignore')}"


def draw(prediction: Prediction, path: Path) -> None:
    """Writes a PNG file: the photograph, and its best classes as bars."""
    # Not pyplot, which keeps every figure and looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    image = crop_and_resize(prediction.path.read_bytes(), lambda height, width: (0, 0, height, width))
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    photograph, bars = figure.subplots(1, 2, width_ratios=(1, 1))
    photograph.imshow(image)
    photograph.set_axis_off()
    photograph.set_title(_printable(prediction.path.name), fontsize=9, parse_math=False)
    places = np.arange(len(prediction.classes))
    bars.barh(places, prediction.probabilities, color="#4c72b0", height=0.7)
    bars.set_yticks(places, [_printable(_first(name)) for name in prediction.classes], parse_math=False)
    bars.invert_yaxis()
    bars.set_xlim(0, 1)
    bars.set_xlabel("probability")
    for side in ("top", "right"):
        bars.spines[side].set_visible(False)
    for place, probability in zip(places, prediction.probabilities, strict=True):
        bars.text(min(probability, 0.86) + 0.01, place, f"{100 * probability:.1f} %", va="center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _first(name: str) -> str:
    """The first of the names that ImageNet gives a class."""
    return name.split(",")[0]


def _printable(name: str) -> str:
    """Of a file or class whose name may be any bytes, as text that can be drawn."""
    return name.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
