"""How a side of a comparison is timed, here or in a process of its own."""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from resnet_jax.host_memory import keep_freed_memory

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


_processes: list[BaseProcess] = []


def in_own_process(make: Callable[[], Run], memory_kept: bool) -> Run:
    """What ``make`` returns, made and called in another process, with freed memory kept or the C library's defaults."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, make, memory_kept), daemon=True)
    process.start()
    _processes.append(process)
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


def end_processes() -> None:
    """Ends those of ``in_own_process``, so that the next comparison has their memory."""
    while _processes:
        process = _processes.pop()
        process.kill()
        process.join()


def _serve(connection: Connection, make: Callable[[], Run], memory_kept: bool) -> None:
    if memory_kept:
        keep_freed_memory()
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
