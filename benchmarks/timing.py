"""How a side of a comparison is timed, here or in a process of its own."""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

Run = Callable[[int], float]  # Takes so many steps, and returns images/s.


def timed(call: Callable[[], Any], batch_size: int, wait: Callable[[Any], Any]) -> Run:
    """``run(n)``, warmed up: n calls of a batch each, then ``wait`` for the last result."""

    def run(num_steps: int) -> float:
        start = time.perf_counter()
        for _ in range(num_steps):
            result = call()
        wait(result)
        return num_steps * batch_size / (time.perf_counter() - start)

    run(3)
    return run


def in_own_process(make: Callable[[], Run]) -> Run:
    """What ``make`` returns, made and called in another process, which lives as long as this one."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, make), daemon=True)
    process.start()
    theirs.close()

    def ask(num_steps: int) -> float:
        ours.send(num_steps)
        try:
            answer = ours.recv()
        except EOFError:
            raise RuntimeError(f"the process of {make} ended") from None
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    ask(1)  # Made, compiled and warm.
    return ask


def _serve(connection: Connection, make: Callable[[], Run]) -> None:
    run: Run | None = None
    while True:
        try:
            num_steps = connection.recv()
        except EOFError:
            return
        try:
            run = run or make()
            connection.send(run(num_steps))
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            connection.send(f"{type(error).__name__}: {lines[0]}")
