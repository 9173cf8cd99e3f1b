"""Data sets: where images come from, how they reach the devices, and what happens to them there.

Importing this imports no jax, no decoder and no library that only one source needs.
"""

from typing import Annotated

from pydantic import Field

from resnet_jax.data.detection.part import DetectionData
from resnet_jax.data.photographs import Photographs
from resnet_jax.data.resident import Resident

__all__ = ["Data", "DetectionData", "Photographs", "Resident"]

# A new kind of data set is a part with ``load(data_dir)``, which gives a ``dataset.Dataset``, and ``view``; and a
# name here.
Data = Annotated[Resident | Photographs | DetectionData, Field(discriminator="kind")]
