"""Placement on devices, and two processes that work as one job."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from resnet_jax import parallel
from resnet_jax.errors import UserError
from resnet_jax.writers import read_metrics

ROOT = Path(__file__).resolve().parent.parent


def test_a_batch_is_cut_along_its_axis_and_parameters_are_whole(mesh):
    array = np.arange(2 * 16 * 3, dtype=np.float32).reshape(2, 16, 3)
    cut = parallel.to_global(array, parallel.sharded_batch(mesh, axis=1))
    whole = parallel.to_global({"kernel": array}, parallel.replicated(mesh))["kernel"]
    assert {shard.data.shape for shard in cut.addressable_shards} == {(2, 16 // mesh.size, 3)}
    assert {shard.data.shape for shard in whole.addressable_shards} == {(2, 16, 3)}
    assert len(whole.addressable_shards) == mesh.size
    np.testing.assert_array_equal(cut, array)
    np.testing.assert_array_equal(whole, array)


def test_the_mesh_takes_every_device_by_default():
    assert parallel.data_mesh().size == len(jax.devices()) == 8


def test_half_given_addresses_are_an_error(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    with pytest.raises(UserError, match="not JAX_NUM_PROCESSES, JAX_PROCESS_ID"):
        parallel.start_distributed()


def start_processes(workdir, count, devices_each, steps):
    """``count`` processes of one job, on ``devices_each`` simulated devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    settings = {"model.stage_sizes": "(1,)", "model.width": 4, "batch_size": 16, "steps": steps, "log_every": 5,
                "eval_every": 10, "checkpoint_every": 10}  # fmt: skip
    command = [sys.executable, "train.py", "--config", "configs/quickstart.py", "--workdir", str(workdir)]
    command += [f"--config.{key}={value}" for key, value in settings.items()]
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices_each}"}
    if count > 1:
        command.append("--distributed")
        environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    return [
        subprocess.Popen(
            command, cwd=ROOT, env={**environment, "JAX_PROCESS_ID": str(number)}, stderr=subprocess.PIPE, text=True
        )
        for number in range(count)
    ]


def finish(processes, status):
    for process in processes:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == status, errors[-2000:]


def test_two_processes_train_what_one_does_and_stop_together(tmp_path):
    finish(start_processes(tmp_path / "one", count=1, devices_each=4, steps=20), status=0)
    finish(start_processes(tmp_path / "two", count=2, devices_each=2, steps=20), status=0)
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [record["step"] for record in two] == [5, 10, 15, 20]
    for record, other in zip(two, one, strict=True):
        np.testing.assert_allclose(record["train_loss"], other["train_loss"], rtol=1e-3)

    # A preemption notice reaches one of the processes; both save the same step and stop.
    processes = start_processes(tmp_path / "stopped", count=2, devices_each=2, steps=100_000)
    deadline = time.monotonic() + 120
    while not read_metrics(tmp_path / "stopped" / "metrics.jsonl") and time.monotonic() < deadline:
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    finish(processes, status=128 + signal.SIGTERM)
    steps = [int(path.name) for path in (tmp_path / "stopped" / "checkpoints").iterdir() if path.name.isdigit()]
    assert 5 <= max(steps) < 100_000
