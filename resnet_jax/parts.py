"""What every configurable part is: a frozen value whose fields are keys of a config, with their ranges beside them."""

import re
import types
from typing import Annotated, Any, Self, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


class Part(BaseModel):
    """A part of a run: an optimizer, a schedule, a transform, a data set, a task.

    Its fields are the keys of its section of a config; what it does is in its methods. An unknown field, a value of
    another type or one out of range raises pydantic's ``ValidationError``, a ``ValueError`` that names the field.
    A part can be hashed and compared. Lists are not taken for tuples, nor strings for numbers. A section takes the
    parts of its annotation, and no classes derived from them, of which a stored config could not tell.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check_sections(self) -> Self:
        for key, field in type(self).model_fields.items():
            part = getattr(self, key)
            if isinstance(part, Part) and type(part) not in variants(field.annotation):
                raise ValueError(
                    f"{key} is a {type(part).__name__}, which a stored config cannot name; add it to the table of its "
                    f"kind (CONTRIBUTING.md), or use it in a loop of your own (examples/distillation.py)"
                )
        return self


def variants(annotation: Any) -> list[type[Part]]:
    """The parts that a section of this annotation can be; none if it is no section."""
    if get_origin(annotation) is Annotated:
        return variants(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [variant for choice in get_args(annotation) for variant in variants(choice)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, Part) else []


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
