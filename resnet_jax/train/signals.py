"""SIGTERM and Ctrl-C ask a run to save its state and stop."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A signal stopped the run after its state was saved, at ``step`` if the run is a training."""

    def __init__(self, signum: int, step: int | None = None) -> None:
        where = "" if step is None else f" at step {step}"
        super().__init__(f"stopped by {signal.Signals(signum).name}{where}; the same command resumes from there")
        self.signum = signum
        self.step = step


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects the stop signals that arrive inside the block; a second one acts as it would have outside.

    The list stays empty outside of the main thread, where Python has no signals, and in multi-host jobs, where JAX's
    own handler must stay in place to tell the other processes.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield received
        return
    previous = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}

    def restore() -> None:
        for signum, handler in previous.items():
            signal.signal(signum, handler)

    def receive(signum: int, frame: object) -> None:
        received.append(signum)
        restore()
        name = signal.Signals(signum).name
        os.write(2, f"\n{name}: saving after this step; a second one ends the run without saving\n".encode())

    for signum in STOP_SIGNALS:
        signal.signal(signum, receive)
    try:
        yield received
    finally:
        restore()
