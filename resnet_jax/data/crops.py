"""Where an image is cropped: boxes (top, left, height, width) in pixels of the image, before any resizing."""

import math

import numpy as np

from resnet_jax.data.images import Box


def scale_jitter_box(
    rng: np.random.Generator, height: int, width: int, shorter_side: tuple[int, int], crop: int
) -> Box:
    """The paper's training crop (arXiv 1512.03385, section 3.4), as a square of the original image.

    The paper resizes the image so that its shorter side is a random integer of [low, high] = ``shorter_side``, and
    takes a random ``crop`` x ``crop`` window of it, ``crop`` <= low. Cut before resizing, the window is the same.
    """
    low, high = shorter_side
    side = _side(height, width, int(rng.integers(low, high + 1)), crop)
    return _placed(rng, height, width, side, side)


def random_resized_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """The training crop of Szegedy et al. (arXiv 1409.4842, section 6), as in torchvision's RandomResizedCrop.

    Its share of the image is uniform in ``area`` and its width / height log-uniform in ``aspect``. After ten draws
    that do not fit, it is the largest central box with the image's own aspect, clipped to ``aspect``.
    """
    for _ in range(10):
        pixels = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        box_height, box_width = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < box_height <= height and 0 < box_width <= width:
            return _placed(rng, height, width, box_height, box_width)
    low, high = aspect
    return _centered(height, width, min(height, max(1, round(width / low))), min(width, max(1, round(height * high))))


def center_box(height: int, width: int, shorter_side: int, crop: int) -> Box:
    """The central ``crop`` x ``crop`` window of the image resized to a shorter side, as a square of the original.

    The 1-crop test of the paper's section 3.4 has ``shorter_side`` 256 and ``crop`` 224; ``crop`` <= ``shorter_side``.
    """
    side = _side(height, width, shorter_side, crop)
    return _centered(height, width, side, side)


def central_square_box(height: int, width: int) -> Box:
    """The largest central square."""
    side = min(height, width)
    return _centered(height, width, side, side)


def whole_box(height: int, width: int) -> Box:
    """The whole image."""
    return 0, 0, height, width


def _side(height: int, width: int, shorter_side: int, crop: int) -> int:
    return max(1, round(min(height, width) * crop / shorter_side))


def _placed(rng: np.random.Generator, height: int, width: int, box_height: int, box_width: int) -> Box:
    top, left = int(rng.integers(height - box_height + 1)), int(rng.integers(width - box_width + 1))
    return top, left, box_height, box_width


def _centered(height: int, width: int, box_height: int, box_width: int) -> Box:
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width
