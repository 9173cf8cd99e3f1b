"""One learning rate throughout."""

from typing import Literal

import optax

from resnet_jax.train.schedules.base import BaseSchedule, Schedule


class Constant(BaseSchedule):
    """The peak at every step."""

    name: Literal["constant"] = "constant"

    def after_warmup(self, peak: float, steps: int, warmup: int, steps_per_epoch: int) -> Schedule:
        return optax.constant_schedule(peak)
