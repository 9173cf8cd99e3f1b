"""Random crops of photographs for training. A new one is a file here and a line in the table below."""

from typing import Annotated

from pydantic import Field

from resnet_jax.data.crops.progressive import Progressive
from resnet_jax.data.crops.random_resized import RandomResized
from resnet_jax.data.crops.scale_jitter import ScaleJitter

__all__ = ["Crop", "Progressive", "RandomResized", "ScaleJitter"]

# Each has ``name`` and ``box(rng, height, width, crop_size)``, the box of an image (height, width) that is resized to
# crop_size x crop_size; ``check(crop_size)`` raises ValueError where it cannot. Imports no jax.
Crop = Annotated[ScaleJitter | RandomResized, Field(discriminator="name")]
