"""Boxes that are cut out of an image: (top, left, height, width) in its own pixels, and what they are resized to."""

from typing import Literal, NamedTuple, Protocol

import numpy as np

Box = tuple[int, int, int, int]  # Top, left, height and width in pixels of the upright image.
RealBox = tuple[float, float, float, float]  # The same, of whole pixels or parts of them.

Interpolation = Literal["area", "bilinear", "bicubic"]


class Look(Protocol):
    """What is seen of a photograph: a box of it, resized by a filter."""

    @property
    def interpolation(self) -> Interpolation: ...

    def box(self, height: int, width: int) -> RealBox:
        """The box of a photograph of (height, width)."""

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that the box of a photograph of (height, width) is resized to."""


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

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(size, size)."""
        return self.size, self.size


class Whole(NamedTuple):
    """All of an image that is resized to a shorter side, or to a longer one of ``max_side`` where it would exceed that.

    Faster R-CNN has 600 (section 3.3), and 1000 in its code. max_side: None: there is no limit.
    """

    shorter_side: int
    max_side: int | None = None
    interpolation: Interpolation = "area"

    def box(self, height: int, width: int) -> RealBox:
        """The whole image."""
        return whole_box(height, width)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) of an image of (height, width)."""
        scale = self.shorter_side / min(height, width)
        if self.max_side is not None:
            scale = min(scale, self.max_side / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def at(self, shorter_side: int) -> "Whole":
        """The same at another shorter side, the longer one's limit in proportion."""
        limit = None if self.max_side is None else round(self.max_side * shorter_side / self.shorter_side)
        return self._replace(shorter_side=shorter_side, max_side=limit)


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
