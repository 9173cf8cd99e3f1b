"""The paper's training crop."""

from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator

from resnet_jax.data.decode.boxes import Box, placed, scaled_side
from resnet_jax.parts import Count, Part, ascending


class ScaleJitter(Part):
    """A random square of the image after its shorter side is resized at random (arXiv 1512.03385, section 3.4)."""

    name: Literal["scale_jitter"] = "scale_jitter"
    shorter_side: Annotated[tuple[Count, Count], AfterValidator(ascending)] = (256, 480)
    """Pixels, the lowest and the highest, both included."""

    def check(self, crop_size: int) -> None:
        """Raises ValueError where a crop of ``crop_size`` pixels is not inside every image so resized."""
        if self.shorter_side[0] < crop_size:
            raise ValueError(f"crop.shorter_side {self.shorter_side} begins below crop_size {crop_size}; raise it")

    def box(self, rng: np.random.Generator, height: int, width: int, crop_size: int) -> Box:
        """The crop as a square of the original image. Cut before resizing, the window is the same."""
        low, high = self.shorter_side
        side = scaled_side(height, width, int(rng.integers(low, high + 1)), crop_size)
        return placed(rng, height, width, side, side)
