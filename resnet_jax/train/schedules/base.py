"""What every schedule has: a warm-up, the hold rule of section 4.2, and the learning rate as a function of the step."""

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeAlias

import jax
import jax.numpy as jnp
from pydantic import Field, model_validator

from resnet_jax.errors import UserError
from resnet_jax.parts import Duration, Fraction, NonNegativeFloat, Part, in_steps

if TYPE_CHECKING:
    from resnet_jax.train.schedules.plateau import Plateau

Schedule: TypeAlias = Callable[[jax.Array], Any]
"""The learning rate by step, from 0: a float or a traced scalar."""


class Hold(Part):
    """Keeps the learning rate at most ``learning_rate`` until the training error falls below ``error`` (section 4.2).

    error: a fraction, compared with the exponential mean of the batches' errors; 0: off. Section 4.2 uses 0.8.
    """

    error: Annotated[float, Field(ge=0, le=1)] = 0.0
    learning_rate: NonNegativeFloat = 0.01

    @model_validator(mode="after")
    def _check_set_is_read(self) -> "Hold":
        if self.error == 0 and self.learning_rate != type(self).model_fields["learning_rate"].default:
            raise ValueError("learning_rate is set but not read, because error is 0, that is off; set error too")
        return self


class BaseSchedule(Part):
    """Base class of the schedules; one of them adds ``name``, its settings, and ``after_warmup``.

    warmup_steps: the rate climbs linearly over these first steps. hold: a lower rate until the network learns at all.
    warmup_from: the part of the peak that the first step has; the peak is then that of the first step after the
        warm-up. None: the warm-up's first step has a share of 1 / ``warmup_steps``, and its last one has the peak.
    """

    name: str
    warmup_steps: Duration = 0
    warmup_from: Fraction | None = None
    hold: Hold = Hold()

    @model_validator(mode="after")
    def _check_warmup_is_read(self) -> Self:
        if self.warmup_from is not None and self.warmup_steps == 0:
            raise ValueError("warmup_from is set but not read, because warmup_steps is 0; set warmup_steps too")
        return self

    @property
    def plateau(self) -> "Plateau | None":
        """The schedule itself if evaluations change its rate, else None."""
        return None

    @abstractmethod
    def after_warmup(self, peak: float, steps: int, warmup: int, steps_per_epoch: int) -> Schedule:
        """The learning rate by step, for steps from ``warmup`` to ``steps`` - 1 of the run."""

    def make(self, peak: float, steps: int, steps_per_epoch: int) -> Schedule:
        """The learning rate by step of a run of ``steps``. ``peak`` is the optimizer's rate.

        Raises UserError where the warm-up is as long as the run.
        """
        warmup = in_steps(self.warmup_steps, steps_per_epoch)
        if warmup >= steps:
            raise UserError(
                f"config.schedule.warmup_steps is {self.warmup_steps!r}; it must be less than config.steps, {steps}"
            )
        main = self.after_warmup(peak, steps, warmup, steps_per_epoch)
        if warmup == 0:
            return main
        first = self.warmup_from
        if first is None:  # The first step already moves: (step + 1) / warmup of the peak.
            return lambda step: jnp.where(step < warmup, peak * (step + 1) / warmup, main(step))
        climb = peak * (1 - first) / warmup
        return lambda step: jnp.where(step < warmup, peak * first + climb * step, main(step))
