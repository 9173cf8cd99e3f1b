import time

import jax
import jax.numpy as jnp
import pytest

from resnet_jax.errors import UserError
from resnet_jax.train.metrics_log import MetricsLog


def metrics(nonfinite_step: int = -1) -> dict[str, jax.Array]:
    values = {"train_loss": 2.5, "train_error": 0.25, "learning_rate": 0.1}
    return {name: jnp.float32(value) for name, value in values.items()} | {"nonfinite_step": jnp.int32(nonfinite_step)}


def test_the_record_of_a_step():
    log = MetricsLog(None, start=0, batch_size=8, percentages={"error"})
    log.hold(10, metrics())
    record = log.fetch()
    assert record.pop("images_per_second") > 0
    assert record == {"step": 10, "train_loss": 2.5, "train_error": 25.0, "learning_rate": pytest.approx(0.1)}
    assert log.fetch() == {}


def test_the_speed_is_of_the_device_and_not_of_when_it_is_asked_for():
    log = MetricsLog(None, start=0, batch_size=1, percentages=set())
    held = jax.block_until_ready(metrics())
    log.restart_clock()
    log.hold(1_000, held)
    time.sleep(1.0)
    assert log.fetch()["images_per_second"] > 2_000  # 1,000 by the time that the main thread took.


def test_a_step_that_is_not_finite_is_named():
    log = MetricsLog(None, start=0, batch_size=8, percentages=set())
    log.hold(10, metrics(nonfinite_step=7))
    with pytest.raises(UserError, match="not finite at step 7"):
        log.fetch()
