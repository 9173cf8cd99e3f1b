"""The training crop that came after the paper and is in common use."""

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from resnet_jax.data.decode.boxes import Box, centered, placed
from resnet_jax.parts import Part, ascending

_ASPECT = (3 / 4, 4 / 3)  # Width / height, log-uniform.


class RandomResized(Part):
    """A random part of the image at a random aspect (arXiv 1409.4842, section 6; torchvision's RandomResizedCrop)."""

    name: Literal["random_resized"] = "random_resized"
    area: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]], AfterValidator(ascending)
    ] = (0.08, 1.0)
    """The part of the image's pixels, the lowest and the highest; uniform in between."""

    def check(self, crop_size: int) -> None:
        """Every size is possible."""

    def box(self, rng: np.random.Generator, height: int, width: int, crop_size: int) -> Box:
        """After ten draws that do not fit, the largest central box of the image's aspect, clipped to 3:4 to 4:3."""
        low, high = _ASPECT
        for _ in range(10):
            pixels = height * width * rng.uniform(*self.area)
            ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
            box_height, box_width = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
            if 0 < box_height <= height and 0 < box_width <= width:
                return placed(rng, height, width, box_height, box_width)
        return centered(
            height, width, min(height, max(1, round(width / low))), min(width, max(1, round(height * high)))
        )
