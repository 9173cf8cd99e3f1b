"""The learning-rate schedules. A new one is a file of its own here and a member of ``AnySchedule``."""

from typing import Annotated, TypeAlias

from pydantic import Field

from resnet_jax.train.schedules.base import BaseSchedule, Hold, Schedule
from resnet_jax.train.schedules.constant import Constant
from resnet_jax.train.schedules.cosine import Cosine
from resnet_jax.train.schedules.exponential import Exponential
from resnet_jax.train.schedules.plateau import Plateau
from resnet_jax.train.schedules.polynomial import Polynomial
from resnet_jax.train.schedules.step import Step
from resnet_jax.train.schedules.triangular import Triangular

AnySchedule: TypeAlias = Annotated[
    Step | Cosine | Constant | Plateau | Polynomial | Exponential | Triangular, Field(discriminator="name")
]

__all__ = [
    "AnySchedule",
    "BaseSchedule",
    "Constant",
    "Cosine",
    "Exponential",
    "Hold",
    "Plateau",
    "Polynomial",
    "Schedule",
    "Step",
    "Triangular",
]
