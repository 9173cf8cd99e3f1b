"""The learning rate divided at fixed steps (section 4.2)."""

from itertools import pairwise
from typing import Literal

import optax

from resnet_jax.errors import UserError
from resnet_jax.parts import Duration, NonNegativeFloat, in_steps
from resnet_jax.train.schedules.base import BaseSchedule, Schedule


class Step(BaseSchedule):
    """The peak, times ``factor`` from each of ``boundaries`` on (section 4.2: a tenth at 32k and at 48k)."""

    name: Literal["step"] = "step"
    boundaries: tuple[Duration, ...] = (32_000, 48_000)
    factor: NonNegativeFloat = 0.1

    def after_warmup(self, peak: float, steps: int, warmup: int, steps_per_epoch: int) -> Schedule:
        """Raises UserError unless the boundaries increase."""
        at = [in_steps(boundary, steps_per_epoch) for boundary in self.boundaries]
        if any(later <= earlier for earlier, later in pairwise(at)):
            raise UserError(f"config.schedule.boundaries is {self.boundaries!r}; its steps must increase")
        return optax.piecewise_constant_schedule(peak, dict.fromkeys(at, self.factor))
