"""The learning rate along half a cosine (Loshchilov and Hutter, arXiv 1608.03983), once or with restarts."""

from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
import optax
from pydantic import Field, model_validator

from resnet_jax.errors import UserError
from resnet_jax.parts import Count, NonNegativeFloat
from resnet_jax.train.schedules.base import BaseSchedule, Schedule


class Cosine(BaseSchedule):
    """From the peak at the end of the warm-up to ``floor`` at the end of the run.

    cycles: how often it does so within the run, each time from the peak. cycle_growth: how many times as long each
    cycle is as the one before; 2 is the paper's T_mult.
    """

    name: Literal["cosine"] = "cosine"
    floor: NonNegativeFloat = 0.0
    cycles: Count = 1
    cycle_growth: Annotated[float, Field(ge=1)] = 1.0

    @model_validator(mode="after")
    def _check_set_is_read(self) -> "Cosine":
        if self.cycles == 1 and self.cycle_growth != 1:
            raise ValueError("cycle_growth is set but not read, because cycles is 1; set cycles too")
        return self

    def after_warmup(self, peak: float, steps: int, warmup: int, steps_per_epoch: int) -> Schedule:
        """Raises UserError where there are not enough steps for the cycles."""
        floor = self.floor / peak if peak else 0.0
        if self.cycles == 1:
            decay = optax.cosine_decay_schedule(peak, steps - warmup, floor)
            return lambda step: decay(step - warmup)
        lengths = self.cycle_growth ** np.arange(self.cycles)
        ends = warmup + np.round((steps - warmup) * np.cumsum(lengths) / lengths.sum()).astype(int)
        edges = np.array([warmup, *ends])
        if (np.diff(edges) < 1).any():
            raise UserError(
                f"config.schedule.cycles is {self.cycles}, but a cycle would have no step; lower it, or cycle_growth"
            )
        cycles = [optax.cosine_decay_schedule(peak, int(length), floor) for length in np.diff(edges)]
        joined = optax.join_schedules(cycles, [int(edge) - warmup for edge in edges[1:-1]])
        return lambda step: joined(jnp.maximum(step - warmup, 0))
