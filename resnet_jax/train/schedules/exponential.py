"""The learning rate multiplied by a factor at regular intervals."""

from typing import Annotated, Literal

import jax.numpy as jnp
from pydantic import Field

from resnet_jax.errors import UserError
from resnet_jax.parts import Duration, in_steps
from resnet_jax.train.schedules.base import BaseSchedule, Schedule


class Exponential(BaseSchedule):
    """peak * factor ** (step / every), as EfficientNet's (arXiv 1905.11946, section 5.2: 0.97 every 2.4 epochs).

    staircase: only whole intervals count. The time is counted from the start of the run, warm-up included.
    """

    name: Literal["exponential"] = "exponential"
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.97
    every: Duration = "2.4 epochs"
    staircase: bool = True

    def after_warmup(self, peak: float, steps: int, warmup: int, steps_per_epoch: int) -> Schedule:
        """Raises UserError where the interval is less than a step."""
        every = in_steps(self.every, steps_per_epoch)
        if every < 1:
            raise UserError(f"config.schedule.every is {self.every!r}; it must be at least one step")
        if self.staircase:
            return lambda step: peak * self.factor ** jnp.float32(step // every)
        return lambda step: peak * self.factor ** (step / every)
