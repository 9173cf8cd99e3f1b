import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from resnet_jax.errors import UserError
from resnet_jax.train import metrics_log
from resnet_jax.train.metrics_log import MetricsLog

ROOT = Path(__file__).resolve().parent.parent.parent


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


def test_steps_that_were_skipped_are_counted_in_the_record():
    log = MetricsLog(None, start=0, batch_size=8, percentages=set())
    for step, state, skipped in ((10, -1, None), (20, -2, 1), (30, -4, 3)):
        log.hold(step, metrics(nonfinite_step=state))
        assert log.fetch().get("skipped_steps") == skipped


def test_the_speed_is_of_the_device_and_not_of_when_it_is_asked_for(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(metrics_log.time, "perf_counter", lambda: clock[0])
    log = MetricsLog(None, start=0, batch_size=1, percentages=set())
    clock[0] = 1.0
    log.hold(1_000, metrics())
    log._pending[2].result()  # The device is done.
    clock[0] = 10.0
    assert log.fetch()["images_per_second"] == 1_000
    log.hold(1_900, metrics())
    log._pending[2].result()
    assert log.fetch()["images_per_second"] == 100  # Since the step before was done.


UNDER_WAY = """
import sys
import jax
import jax.numpy as jnp
from resnet_jax.train.metrics_log import MetricsLog

slow = jax.jit(lambda x: jax.lax.fori_loop(0, 300, lambda i, x: x @ x / 500, x).sum())
loss = slow(jnp.ones((500, 500)))
with MetricsLog(None, start=0, batch_size=1, percentages=set()) as log:
    log.hold(1, {"train_loss": loss})
    print("under way" if not loss.is_ready() else "done too early", flush=True)
    sys.exit(2)
"""


@pytest.mark.extensive
def test_a_program_that_fails_while_a_logged_step_is_under_way_exits_as_it_wants_to():
    done = subprocess.run([sys.executable, "-c", UNDER_WAY], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (2, "under way\n", "")


def test_a_step_that_is_not_finite_is_named():
    log = MetricsLog(None, start=0, batch_size=8, percentages=set())
    log.hold(10, metrics(nonfinite_step=7))
    with pytest.raises(UserError, match="not finite at step 7"):
        log.fetch()
