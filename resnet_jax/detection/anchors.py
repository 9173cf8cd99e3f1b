"""Anchors: the reference boxes that a region proposal network scores and moves at each position of its maps."""

from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.detection.checks import check_one_of
from resnet_jax.errors import UserError

Ratios = tuple[float, ...]
Style: TypeAlias = Literal["exact", "rounded", "legacy"]


def cell_anchors(sizes: tuple[float, ...], ratios: Ratios = (0.5, 1.0, 2.0), rounded: bool = False) -> np.ndarray:
    """(A, 4) boxes about the origin, of area size² and height ratio x width, ratio by ratio, each with all sizes.

    With ``rounded`` to whole pixels, as torchvision has them.
    """
    roots = np.sqrt(np.asarray(ratios, np.float32))[:, None]
    heights = (roots * np.asarray(sizes, np.float32)).reshape(-1)
    widths = (1 / roots * np.asarray(sizes, np.float32)).reshape(-1)
    cells = np.stack([-widths, -heights, widths, heights], axis=1) / 2
    return np.round(cells) if rounded else cells


def legacy_anchors(
    scales: tuple[float, ...] = (8.0, 16.0, 32.0), ratios: Ratios = (0.5, 1.0, 2.0), base: int = 16
) -> np.ndarray:
    """(A, 4), by default the nine windows of the released Faster R-CNN: 128², 256² and 512² in three shapes.

    They are made as there, by whole numbers: of a window of ``base`` pixels, from 0 to base - 1, first the shapes, then
    the sizes. The numbers are those of the last pixels, so that here, where a box of 0 to 15 is 15 wide, each anchor is
    a pixel smaller.
    """
    centre = (base - 1) / 2
    widths = np.round(np.sqrt(base * base / np.asarray(ratios)))
    heights = np.round(widths * np.asarray(ratios))
    w = (widths[:, None] * np.asarray(scales)).reshape(-1)
    h = (heights[:, None] * np.asarray(scales)).reshape(-1)
    cells = [centre - (w - 1) / 2, centre - (h - 1) / 2, centre + (w - 1) / 2, centre + (h - 1) / 2]
    return np.stack(cells, axis=1).astype(np.float32)


def grid_anchors(hw: tuple[int, ...], stride: tuple[int, int] | int, cells: np.ndarray) -> jax.Array:
    """``cells`` (A, 4) at each position of a map of ``hw``, row by row, ``stride`` pixels apart: (H * W * A, 4)."""
    down, right = (stride, stride) if isinstance(stride, int) else stride
    y, x = (jnp.arange(n, dtype=jnp.float32) * step for n, step in zip(hw, (down, right), strict=True))
    shifts = jnp.stack(jnp.broadcast_arrays(x[None, :], y[:, None], x[None, :], y[:, None]), axis=-1)
    return (shifts[:, :, None] + jnp.asarray(cells, jnp.float32)).reshape(-1, 4)


class Anchors(NamedTuple):
    """Which anchors a detector has; hashable.

    sizes: square roots of the areas in pixels, for each map of the backbone (one for C4, five for FPN).
    ratios: heights over widths.
    style: "exact"; "rounded" to whole pixels, as torchvision's; or "legacy", those of the released Faster R-CNN.
    fitted: take the distance between anchors from the image's size over the map's, rounded down, as torchvision does,
        instead of the map's stride. The two differ where the image is no multiple of the stride.
    """

    sizes: tuple[tuple[float, ...], ...]
    ratios: Ratios = (0.5, 1.0, 2.0)
    style: Style = "exact"
    fitted: bool = False

    @property
    def per_position(self) -> int:
        """The anchors at each position, on every map as many. Raises UserError unless ``sizes`` are tuples as long."""
        lengths = {len(of_map) if isinstance(of_map, tuple) else 0 for of_map in self.sizes}
        if len(lengths) != 1 or 0 in lengths:
            raise UserError(
                f"sizes of anchors are {self.sizes}; give a tuple for each map, as in ((16.0,), (32.0,)), each as long"
            )
        return len(self.sizes[0]) * len(self.ratios)

    def cells(self, level: int) -> np.ndarray:
        """(A, 4), those about the origin of a map. Raises UserError for an unknown ``style``."""
        check_one_of("style", self.style, Style)
        if self.style == "legacy":
            return legacy_anchors(tuple(size / 16 for size in self.sizes[level]), self.ratios)
        return cell_anchors(self.sizes[level], self.ratios, rounded=self.style == "rounded")

    def on(
        self, image_hw: tuple[int, ...], maps: list[tuple[int, ...]], strides: tuple[int, ...]
    ) -> tuple[jax.Array, ...]:
        """The anchors (H * W * A, 4) of each map, for (padded) images of ``image_hw`` and ``maps`` of these sizes.

        Raises ValueError if there are more or fewer ``sizes`` than maps.
        """
        if len(self.sizes) != len(maps):
            raise ValueError(f"anchors have sizes for {len(self.sizes)} maps, and the backbone has {len(maps)}")
        result = []
        for level, (hw, stride) in enumerate(zip(maps, strides, strict=True)):
            step = (image_hw[0] // hw[0], image_hw[1] // hw[1]) if self.fitted else (stride, stride)
            result.append(grid_anchors(hw, step, self.cells(level)))
        return tuple(result)
