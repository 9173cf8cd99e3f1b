"""Progressive resizing: smaller training crops at first."""

from typing import Self

from pydantic import model_validator

from resnet_jax.parts import Count, Duration, Part, in_steps


class Progressive(Part):
    """The side of the training crops by epoch, from ``start_size`` to their full size (Howard 2018; as FFCV's recipes).

    start_size: pixels; None: off, all crops have the full size.
    begin, end: from when to when the size grows, linearly, rounded to a ``multiple`` of pixels.

    It changes between epochs only. Each size is one compilation of the training step: at most
    (full size - start_size) / multiple + 2.
    """

    start_size: Count | None = None
    begin: Duration = 0
    end: Duration = "1 epoch"
    multiple: Count = 32

    @model_validator(mode="after")
    def _check_set_is_read(self) -> Self:
        for key, field in type(self).model_fields.items():
            if self.start_size is None and getattr(self, key) != field.default:
                raise ValueError(f"{key} is set but not read, because start_size is not; set it too")
        # A time in epochs and one in steps can only be compared once the data are known.
        begin, end = self.begin, self.end
        if isinstance(begin, str) == isinstance(end, str) and in_steps(begin, 1000) >= in_steps(end, 1000):
            raise ValueError(f"begin {begin!r} is not before end {end!r}; correct one of them")
        return self

    def size(self, step: int, steps_per_epoch: int, full_size: int) -> int:
        """Pixels of the side of the crops of a step."""
        if self.start_size is None:
            return full_size
        begin, end = (in_steps(duration, steps_per_epoch) for duration in (self.begin, self.end))
        now = step // steps_per_epoch * steps_per_epoch
        if now <= begin:
            return self.start_size
        if now >= end:
            return full_size
        wanted = self.start_size + (full_size - self.start_size) * (now - begin) / (end - begin)
        return min(full_size, max(self.start_size, round(wanted / self.multiple) * self.multiple))
