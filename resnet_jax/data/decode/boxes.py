"""Boxes that are cut out of an image: (top, left, height, width) in its own pixels, before any resizing."""

import numpy as np

Box = tuple[int, int, int, int]  # Top, left, height and width in pixels of the upright image.


def center_box(height: int, width: int, shorter_side: int, crop: int) -> Box:
    """The central ``crop`` x ``crop`` window of the image resized to a shorter side, as a square of the original.

    The 1-crop test of the paper's section 3.4 has ``shorter_side`` 256 and ``crop`` 224; ``crop`` <= ``shorter_side``.
    """
    side = scaled_side(height, width, shorter_side, crop)
    return centered(height, width, side, side)


def central_square_box(height: int, width: int) -> Box:
    """The largest central square."""
    side = min(height, width)
    return centered(height, width, side, side)


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
