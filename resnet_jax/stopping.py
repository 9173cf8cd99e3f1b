"""Long evaluations ask between two batches whether the run has to stop."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_told: Callable[[], int | None] | None = None


class Interrupted(Exception):
    """An evaluation was given up because of a signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@contextmanager
def interruptible(told: Callable[[], int | None]) -> Iterator[None]:
    """Inside the block ``point`` asks ``told``, which gives a signal or None, and raises Interrupted for a signal."""
    global _told
    _told = told
    try:
        yield
    finally:
        _told = None


def point() -> None:
    """A place where an evaluation may be given up; every process of a job comes to it as often."""
    signum = _told() if _told else None
    if signum is not None:
        raise Interrupted(signum)
