"""Boxes that are cut out of an image: (top, left, height, width) in its own pixels, before any resizing."""

from typing import Literal, NamedTuple

import numpy as np

Box = tuple[int, int, int, int]  # Top, left, height and width in pixels of the upright image.
RealBox = tuple[float, float, float, float]  # The same, of whole pixels or parts of them.

Interpolation = Literal["area", "bilinear", "bicubic"]


class CentralCrop(NamedTuple):
    """The central ``size`` x ``size`` pixels of an image that is resized to a shorter side, which is no smaller.

    The 1-crop test of the paper's section 3.4 has ``shorter_side`` 256 and ``size`` 224.
    interpolation: "area" takes the nearest square of whole pixels and resizes that; the others, the box that
        torchvision and timm cut out of the resized image, whose sides they round.
    """

    shorter_side: int
    size: int
    interpolation: Interpolation = "area"

    def box(self, height: int, width: int) -> RealBox:
        """What it is of an image of (height, width)."""
        if self.interpolation == "area":
            side = scaled_side(height, width, self.shorter_side, self.size)
            return centered(height, width, side, side)
        # torchvision's Resize cuts the longer side off to whole pixels, and its CenterCrop rounds half to even.
        resized = [int(self.shorter_side * side / min(height, width)) for side in (height, width)]
        scales = [side / new for side, new in zip((height, width), resized, strict=True)]
        top, left = (round((new - self.size) / 2) * scale for new, scale in zip(resized, scales, strict=True))
        return top, left, self.size * scales[0], self.size * scales[1]


def whole_box(height: int, width: int) -> Box:
    """The whole image."""
    return 0, 0, height, width


def scaled_side(height: int, width: int, shorter_side: int, crop: int) -> int:
    """The side, in pixels of the image, of ``crop`` pixels of it once its shorter side is ``shorter_side``."""
    return max(1, round(min(height, width) * crop / shorter_side))


def placed(rng: np.random.Generator, height: int, width: int, box_height: int, box_width: int) -> Box:
    """A box of this size at a random place in the image, all equally likely."""
    top, left = int(rng.integers(height - box_height + 1)), int(rng.integers(width - box_width + 1))
    return top, left, box_height, box_width


def centered(height: int, width: int, box_height: int, box_width: int) -> Box:
    """A box of this size in the middle of the image."""
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width
