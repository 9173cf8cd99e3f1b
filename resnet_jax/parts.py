"""What every configurable part is: a frozen value whose fields are keys of a config, with their ranges beside them."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Part(BaseModel):
    """A part of a run: an optimizer, a schedule, a transform, a data set, a task.

    Its fields are the keys of its section of a config; what it does is in its methods. An unknown field, a value of
    another type or one out of range raises pydantic's ``ValidationError``, a ``ValueError`` that names the field.
    A part can be hashed and compared. Lists are not taken for tuples, nor strings for numbers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


_EPOCHS = re.compile(r"(\d{1,9}(?:\.\d+)?) epochs?")


def _checked_duration(value: Any) -> Any:
    if isinstance(value, str) and not _EPOCHS.fullmatch(value):
        raise ValueError('it must be a number of steps, or of epochs as in "90 epochs"')
    if not isinstance(value, str) and value < 0:
        raise ValueError("it must be 0 or above")
    return value


Duration = Annotated[int | str, AfterValidator(_checked_duration)]
"""A number of steps, or of passes over the training set as in "90 epochs"."""


def _not_none(value: int | str) -> int | str:
    if in_steps(value, 10**9) < 1:
        raise ValueError("it must be at least 1")
    return value


PositiveDuration = Annotated[Duration, AfterValidator(_not_none)]
"""One that is not 0; at least a step, however short the epochs are."""

Count = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


def ascending(values: tuple[float, float]) -> tuple[float, float]:
    """A validator of ranges. Raises ValueError unless the lower value comes first."""
    if values[0] > values[1]:
        raise ValueError("it must be a range: the lower value first")
    return values


def in_steps(duration: int | str, steps_per_epoch: int) -> int:
    """The steps of a ``Duration``, rounded to the nearest; an epoch is ``steps_per_epoch`` of them."""
    if isinstance(duration, str):
        match = _EPOCHS.fullmatch(duration)
        if match is None:
            raise ValueError(f"{duration!r} is not a duration")
        return round(float(match[1]) * steps_per_epoch)
    return duration
