"""Metrics on their way from the device to the record."""

import time
from typing import Any

import jax

from resnet_jax.errors import UserError
from resnet_jax.train.step import Metrics
from resnet_jax.writers import MetricsWriter


class MetricsLog:
    """Holds a logged step's metrics on the device until the next step is under way, so that it never waits for us.

    Every process fetches, so that all of them notice a loss that is not finite; only the one with a writer writes.
    """

    def __init__(self, writer: MetricsWriter | None, start: int, batch_size: int) -> None:
        self._writer = writer
        self._batch_size = batch_size
        self._pending: tuple[int, Metrics] | None = None
        self._lap_step = start
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves the time since the last fetch (an evaluation, a save) out of images_per_second."""
        self._lap_time = time.perf_counter()

    def hold(self, step: int, metrics: Metrics) -> None:
        """Keeps the metrics of ``step`` for the next ``fetch``."""
        self._pending = (step, metrics)

    def fetch(self) -> dict[str, Any]:
        """Waits for the held metrics: {"step", "train_loss", "train_error" in percent, ...}; {} if none are held."""
        if self._pending is None:
            return {}
        step, metrics = self._pending
        self._pending = None
        check_finite(metrics)
        now = time.perf_counter()
        images = (step - self._lap_step) * self._batch_size
        record = {
            "step": step,
            "train_loss": float(metrics["train_loss"]),
            "train_error": round(100 * float(metrics["train_error"]), 4),
            "learning_rate": float(metrics["learning_rate"]),
            "images_per_second": round(images / (now - self._lap_time), 1),
        }
        self._lap_step, self._lap_time = step, now
        return record

    def write(self, record: dict[str, Any]) -> None:
        """Writes a record for good; an empty one not at all."""
        if self._writer and record:
            self._writer.write(record)


def check_finite(metrics: Metrics) -> None:
    """Raises UserError if the loss, gradient or update of any step was not finite, naming the first such step."""
    step = int(jax.device_get(metrics["nonfinite_step"]))
    if step >= 0:
        raise UserError(
            f"the loss, its gradient or the update is not finite at step {step}; the last good checkpoint is kept; "
            f"lower config.optimizer.learning_rate or set config.schedule.warmup_steps"
        )
