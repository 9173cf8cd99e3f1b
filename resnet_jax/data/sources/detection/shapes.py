"""Drawn circles, squares and triangles on noise, for tests of learning: a function of (split, index)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_jax.data.sources.detection.protocol import Objects, OpenedDetection, make_objects
from resnet_jax.errors import UserError

CLASSES = ("circle", "square", "triangle")
SIZES = {"train": 2_000, "validation": 200}
SIDE = 128
_RADIUS = (8, 28)  # Half of a side of the box.
_MOST = 5
_NOISE = 20  # From -20 to 20 grey levels, all alike.


class Shape(NamedTuple):
    """A shape in the box of half side ``radius`` around a centre; ``colour`` (3,) uint8, to which noise is added."""

    label: int
    x: float
    y: float
    radius: float
    colour: np.ndarray

    @property
    def box(self) -> tuple[float, float, float, float]:
        return self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius


class ShapesSource:
    """A ``DetectionSource`` that draws each photograph when it is asked for.

    one_class: only the shapes of the class of each photograph's first one, as localisation needs it.
    """

    shorter_side: int | None = None

    def __init__(self, split: str, one_class: bool = False) -> None:
        self._split = split
        self._one_class = one_class

    def _shapes(self, index: int) -> tuple[np.random.Generator, list[Shape]]:
        rng, shapes = place_shapes(list(SIZES).index(self._split), index)
        return rng, [shape for shape in shapes if not self._one_class or shape.label == shapes[0].label]

    def __len__(self) -> int:
        return SIZES[self._split]

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng, shapes = self._shapes(index)
        noise = rng.integers(
            2 * _NOISE + 1, size=(SIDE, SIDE, 3), dtype=np.uint8
        )  # Of mean _NOISE, which is taken off.
        image = noise + rng.integers(90 - _NOISE, 166 - _NOISE, 3, dtype=np.uint8)
        centres = np.arange(SIDE) + 0.5
        for shape in shapes:
            inside = _inside(shape, centres[None, :], centres[:, None])
            image[inside] = noise[inside] + shape.colour
        return {"image": image, "label": 0, "name": f"{self._split}[{index}]"}

    def objects(self, index: int) -> Objects:
        _, shapes = self._shapes(index)
        return make_objects([shape.box for shape in shapes], [shape.label for shape in shapes])

    def image_id(self, index: int) -> int:
        return index

    def files(self) -> list[Path]:
        return []


def place_shapes(seed: int, index: int) -> tuple[np.random.Generator, list[Shape]]:
    """One to five shapes, none of whose boxes overlap much, and the generator that draws the rest."""
    rng = np.random.default_rng((seed, index))
    shapes: list[Shape] = []
    wanted = int(rng.integers(1, _MOST + 1))
    for _ in range(20 * wanted):
        radius = rng.uniform(*_RADIUS)
        x, y = rng.uniform(radius, SIDE - radius, 2)
        # Brighter or darker than the ground, in each channel.
        colour = np.where(rng.random(3) < 0.5, rng.integers(60, size=3), rng.integers(190, 215, 3)).astype(np.uint8)
        shape = Shape(int(rng.integers(len(CLASSES))), x, y, radius, colour)
        # The larger of the two distances of centres; below the sum of radii, boxes overlap.
        if all(max(abs(x - other.x), abs(y - other.y)) > 0.85 * (radius + other.radius) for other in shapes):
            shapes.append(shape)
        if len(shapes) == wanted:
            break
    return rng, shapes


def _inside(shape: Shape, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The pixels, by their centres, that a shape covers; it touches all sides of its box."""
    across, down = (x - shape.x) / shape.radius, (y - shape.y) / shape.radius
    if shape.label == 0:
        return across**2 + down**2 <= 1
    if shape.label == 1:
        return np.maximum(abs(across), abs(down)) <= 1
    return (2 * abs(across) <= down + 1) & (down <= 1)  # Upright: the tip is in the middle of the upper side.


def open_shapes(name: str, data_dir: str | None, splits: Sequence[str], classes: Sequence[str]) -> OpenedDetection:
    """Its splits "train" (2,000) and "validation" (200). Reads no files. Raises UserError for another split.

    Of the name "shapes_of_one_class" each photograph has shapes of a single class.
    """
    if classes:
        raise UserError(f"config.data.classes is set, but the classes of shapes are {', '.join(CLASSES)}; remove it")

    def open_split(split: str) -> ShapesSource:
        if split not in SIZES:
            raise UserError(f"the drawn shapes have no split {split!r}; use {' or '.join(SIZES)}")
        return ShapesSource(split, one_class=name == "shapes_of_one_class")

    return OpenedDetection(open_split, list(CLASSES), list(range(len(CLASSES))))
