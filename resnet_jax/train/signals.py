"""SIGTERM and Ctrl-C ask a run to save its state and stop."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from resnet_jax import distributed

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_AGAIN = 1.0  # Seconds, before which a second signal is the first one, handed on by the program that started this one.


class Stopped(Exception):
    """A signal stopped the run after its state was saved, at ``step`` if the run is a training."""

    def __init__(self, signum: int, step: int | None = None) -> None:
        where = "" if step is None else f" at step {step}"
        super().__init__(f"stopped by {signal.Signals(signum).name}{where}; the same command resumes from there")
        self.signum = signum
        self.step = step


@contextmanager
def stop_signals() -> Iterator[Callable[[], int | None]]:
    """Collects the stop signals that arrive inside the block; a second one, after ``_AGAIN``, ends the process at once.

    What it gives tells the first signal, or None. In a job of several processes it tells all of them of a signal to any
    of them, at the same call; every process must call it as often. Outside of the main thread, where Python has no
    signals, it never tells of one of this process.
    """
    received: list[int] = []

    def told() -> int | None:
        if distributed.active():
            return distributed.stopping()
        return received[0] if received else None

    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    def receive(signum: int, frame: object) -> None:
        received.append(signum)
        distributed.ask_to_stop(signum)

    # Python calls ``receive`` between two of its instructions, which can take minutes while a program is compiled. A
    # byte comes through the socket at once.
    heard, told_by_python = socket.socketpair()
    told_by_python.setblocking(False)

    def listen() -> None:
        first: float | None = None
        for byte in iter(lambda: heard.recv(1), b""):
            if byte[0] not in STOP_SIGNALS:
                continue
            name = signal.Signals(byte[0]).name
            if first is not None:
                if time.monotonic() < first + _AGAIN:
                    continue
                os.write(2, f"\n{name}: ended without saving; the last checkpoint is kept\n".encode())
                os._exit(128 + byte[0])
            first = time.monotonic()
            os.write(2, f"\n{name}: saving after this step; another one ends the run without saving\n".encode())

    previous_fd = signal.set_wakeup_fd(told_by_python.fileno())
    previous = {signum: signal.signal(signum, receive) for signum in STOP_SIGNALS}
    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield told
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(previous_fd)
        told_by_python.close()
        listener.join()
        heard.close()
