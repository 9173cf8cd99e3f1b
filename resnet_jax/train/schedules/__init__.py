"""The learning-rate schedules. A new one is a file of its own here and a member of ``AnySchedule``."""

from typing import Annotated, TypeAlias

from pydantic import Field

from resnet_jax.train.schedules.base import BaseSchedule, Hold, Schedule
from resnet_jax.train.schedules.constant import Constant
from resnet_jax.train.schedules.cosine import Cosine
from resnet_jax.train.schedules.plateau import Plateau
from resnet_jax.train.schedules.step import Step

AnySchedule: TypeAlias = Annotated[Step | Cosine | Constant | Plateau, Field(discriminator="name")]

__all__ = ["AnySchedule", "BaseSchedule", "Constant", "Cosine", "Hold", "Plateau", "Schedule", "Step"]
