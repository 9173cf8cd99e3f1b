"""The learning rate reduced when the validation error stops falling (section 3.4)."""

from typing import Annotated, Literal

import optax
from pydantic import Field

from resnet_jax.parts import Count, NonNegativeInt
from resnet_jax.train.schedules.base import BaseSchedule, Schedule


class Plateau(BaseSchedule):
    """The peak, times ``factor`` after each ``patience`` evaluations without a new least error (section 3.4).

    cooldown: evaluations after a reduction that are not counted. floor: the least part of the peak that is left.
    The steps at which the rate fell are in the run's record of metrics, which has the learning rate.
    """

    name: Literal["plateau"] = "plateau"
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    patience: Count = 5
    cooldown: NonNegativeInt = 0
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @property
    def plateau(self) -> "Plateau | None":
        return self

    def after_warmup(self, peak: float, steps: int, warmup: int, steps_per_epoch: int) -> Schedule:
        return optax.constant_schedule(peak)

    def reducer(self) -> optax.GradientTransformationExtraArgs:
        """Its state's ``scale`` multiplies the learning rate.

        Update it once an evaluation with ``value=`` the error; a new least one is lower by a relative 1e-4. It is
        separate from the optimizer's chain, where it would count steps.
        """
        return optax.contrib.reduce_on_plateau(
            factor=self.factor, patience=self.patience, cooldown=self.cooldown, min_scale=self.floor
        )
