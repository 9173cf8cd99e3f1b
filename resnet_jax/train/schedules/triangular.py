"""The learning rate up and down in straight lines."""

from typing import Literal

import jax.numpy as jnp

from resnet_jax.errors import UserError
from resnet_jax.parts import Duration, Fraction, in_steps
from resnet_jax.train.schedules.base import BaseSchedule, Schedule


class Triangular(BaseSchedule):
    """From ``start`` of the peak up to the peak at ``peak_at``, and down to ``end`` of it at the end of the run.

    One cycle (Smith and Topin, arXiv 1708.07120, section 3), as the fast recipes have it; it is its own warm-up.
    """

    name: Literal["triangular"] = "triangular"
    peak_at: Duration = "2 epochs"
    start: Fraction = 0.0
    end: Fraction = 0.0

    def after_warmup(self, peak: float, steps: int, warmup: int, steps_per_epoch: int) -> Schedule:
        """Raises UserError unless the peak is after the warm-up and before the end."""
        top = in_steps(self.peak_at, steps_per_epoch)
        if not warmup < top < steps:
            raise UserError(
                f"config.schedule.peak_at is {self.peak_at!r}, step {top}; it must be after the warm-up, step "
                f"{warmup}, and before config.steps, {steps}"
            )
        places, rates = jnp.array([warmup, top, steps]), jnp.array([self.start * peak, peak, self.end * peak])
        return lambda step: jnp.interp(step, places, rates)
