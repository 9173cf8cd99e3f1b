"""Metrics on their way from the device to the record."""

import threading
import time
from collections.abc import Set
from concurrent.futures import Future
from typing import Any

import jax

from resnet_jax.errors import UserError
from resnet_jax.train.step import Metrics
from resnet_jax.train.writers import MetricsWriter

_POLL = 0.002  # Seconds.


class MetricsLog:
    """Keeps a logged step's metrics on the device until the next step is under way, so that it never waits for them.

    Every process fetches, so that all of them notice a loss that is not finite; only the one with a writer writes.
    ``percentages`` are the task's metrics that are recorded in percent.

    A context: it must be left before the program exits.
    """

    def __init__(self, writer: MetricsWriter | None, start: int, batch_size: int, percentages: Set[str]) -> None:
        self._writer = writer
        self._batch_size = batch_size
        self._percentages = {f"train_{name}" for name in percentages}
        self._pending: tuple[int, Metrics, Future[float]] | None = None
        self._looking: threading.Thread | None = None
        self._left = threading.Event()
        self._lap_step = start
        self.restart_clock()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the thread, also where a step is still under way: the program would wait for it, or abort in it."""
        self._left.set()
        if self._looking:
            self._looking.join()

    def restart_clock(self) -> None:
        """Leaves the time since the last fetch (an evaluation, a save) out of images_per_second."""
        self._lap_time = time.perf_counter()

    def hold(self, step: int, metrics: Metrics) -> None:
        """Keeps the metrics of ``step`` for the next ``fetch``."""
        self._pending = (step, metrics, self._time_of(metrics))

    def _time_of(self, metrics: Metrics) -> Future[float]:
        """When the device has computed the metrics, to ``_POLL`` seconds.

        A thread looks, because a call of many steps can take the host as long as the device: the steps may have been
        done long before the main thread comes to ask.
        """
        found: Future[float] = Future()
        values: list[Any] = list(metrics.values())  # jax.Array does not declare is_ready.

        def look() -> None:
            try:
                while not all(value.is_ready() for value in values):
                    if self._left.wait(_POLL):
                        return
                found.set_result(time.perf_counter())
            except Exception as error:  # Whoever asks for the time gets it.
                found.set_exception(error)

        self._looking = threading.Thread(target=look)
        self._looking.start()
        return found

    def fetch(self) -> dict[str, Any]:
        """Waits for the metrics that are kept: {"step", "train_loss", ..., "learning_rate"}; {} if there are none.

        Raises UserError as ``check_finite`` does.
        """
        if self._pending is None:
            return {}
        step, metrics, ready = self._pending
        self._pending = None
        check_finite(metrics)
        now = ready.result()
        images = (step - self._lap_step) * self._batch_size
        record: dict[str, Any] = {"step": step}
        others = sorted(metrics.keys() - {"train_loss", "learning_rate", "nonfinite_step"})
        for name in ("train_loss", *others, "learning_rate"):
            value = float(metrics[name])
            record[name] = round(100 * value, 4) if name in self._percentages else value
        skipped = -1 - int(metrics["nonfinite_step"])
        if skipped > 0:
            record["skipped_steps"] = skipped
        record["images_per_second"] = round(images / (now - self._lap_time), 1)
        self._lap_step, self._lap_time = step, now
        return record

    def write(self, record: dict[str, Any]) -> None:
        """Writes a record durably; an empty one not at all."""
        if self._writer and record:
            self._writer.write(record)


def check_finite(metrics: Metrics) -> None:
    """Raises UserError if the loss, gradient or update of any step was not finite, naming the first such step."""
    step = int(jax.device_get(metrics["nonfinite_step"]))
    if step >= 0:
        raise UserError(
            f"the loss, its gradient or the update is not finite at step {step}; the last good checkpoint is kept; "
            f"lower config.optimizer.learning_rate, set config.schedule.warmup_steps, or skip such steps by "
            f"config.on_nonfinite=skip"
        )
