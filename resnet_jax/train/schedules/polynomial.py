"""The learning rate along a power of the remaining time."""

from typing import Literal

import optax

from resnet_jax.parts import NonNegativeFloat
from resnet_jax.train.schedules.base import BaseSchedule, Schedule


class Polynomial(BaseSchedule):
    """From the peak at the end of the warm-up to ``floor`` at the end of the run.

    floor + (peak - floor) * (remaining share of the time) ** power; 2 is LARS's (arXiv 1708.03888, section 5).
    """

    name: Literal["polynomial"] = "polynomial"
    power: NonNegativeFloat = 2.0
    floor: NonNegativeFloat = 0.0

    def after_warmup(self, peak: float, steps: int, warmup: int, steps_per_epoch: int) -> Schedule:
        decay = optax.polynomial_schedule(peak, self.floor, self.power, steps - warmup)
        return lambda step: decay(step - warmup)
