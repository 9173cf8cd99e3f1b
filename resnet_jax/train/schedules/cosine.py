"""The learning rate along half a cosine (Loshchilov and Hutter 2017, without restarts)."""

from typing import Literal

import optax

from resnet_jax.train.schedules.base import BaseSchedule, Schedule


class Cosine(BaseSchedule):
    """From the peak at the end of the warm-up to 0 at the end of the run."""

    name: Literal["cosine"] = "cosine"

    def after_warmup(self, peak: float, steps: int, warmup: int, steps_per_epoch: int) -> Schedule:
        decay = optax.cosine_decay_schedule(peak, steps - warmup)
        return lambda step: decay(step - warmup)
