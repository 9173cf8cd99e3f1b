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
import PIL.Image
import pytest

from resnet_jax import parallel
from resnet_jax.config import load_config, override
from resnet_jax.errors import UserError
from resnet_jax.experiment.training import train
from resnet_jax.train.writers import read_metrics

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


def test_a_process_alone_puts_the_whole_of_its_own_part_on_its_devices(mesh):
    tree = {"image": np.arange(2 * 16 * 3, dtype=np.uint8).reshape(2, 16, 3), "label": np.arange(32).reshape(2, 16)}
    placed = parallel.from_local(tree, parallel.sharded_batch(mesh, axis=1))
    assert placed.keys() == tree.keys()
    for key, array in tree.items():
        np.testing.assert_array_equal(placed[key], array)
        for number, shard in enumerate(placed[key].addressable_shards):
            size = 16 // mesh.size
            assert shard.device == mesh.devices[number]
            np.testing.assert_array_equal(shard.data, array[:, number * size : (number + 1) * size])


def test_the_mesh_takes_every_device_by_default():
    assert parallel.data_mesh().size == len(jax.devices()) == 8


SETTINGS = {"model.stage_sizes": (1,), "model.width": 4, "batch_size": 16, "log_every": 5, "eval_every": 10,
            "checkpoint_every": 10}  # fmt: skip


def start_processes(workdir, **settings):
    """Two processes of one job, each on two simulated devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "train.py", "--config", "configs/quickstart.py", "--workdir", str(workdir)]
    command += ["--distributed", *(f"--config.{key}={value}" for key, value in (SETTINGS | settings).items())]
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # Compiling takes most of the time.
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
    }
    return [
        subprocess.Popen(
            command, cwd=ROOT, env=environment | {"JAX_PROCESS_ID": str(number)}, stderr=subprocess.PIPE, text=True
        )
        for number in range(2)
    ]


def finish(processes, status):
    for process in processes:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == status, errors[-2000:]


@pytest.mark.slow
def test_two_processes_train_what_one_does_on_photographs(tmp_path):
    for split, count in (("train", 40), ("val", 10)):
        for i in range(count):
            path = tmp_path / "photographs" / split / f"class{i % 3}" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(i).integers(256, size=(20 + i % 5, 30 - i % 7, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(path)
    settings = {
        "data.kind": "photographs",
        "data.name": "folder",
        "data_dir": str(tmp_path / "photographs"),
        "data.crop_size": 12,
        "data.crop.shorter_side": (14, 20),
        "data.eval_shorter_side": 14,
        "transforms.random_crop.pad": 2,
        "steps": 20,
    }
    processes = start_processes(tmp_path / "two", **settings)
    train(override(load_config(str(ROOT / "configs" / "quickstart.py")), SETTINGS | settings), tmp_path / "one")
    finish(processes, status=0)
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [record["step"] for record in two] == [5, 10, 15, 20]
    for record, other in zip(two, one, strict=True):
        assert record.keys() == other.keys()
        np.testing.assert_allclose(record["train_loss"], other["train_loss"], rtol=1e-3)
    for record, other in zip(two[1::2], one[1::2], strict=True):  # Steps 10 and 20.
        np.testing.assert_allclose(record["validation_loss"], other["validation_loss"], rtol=1e-3)


@pytest.mark.slow
def test_a_preemption_notice_to_one_process_stops_both_at_the_same_step(tmp_path):
    processes = start_processes(tmp_path / "stopped", steps=100_000)
    deadline = time.monotonic() + 120
    while not read_metrics(tmp_path / "stopped" / "metrics.jsonl") and time.monotonic() < deadline:
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    finish(processes, status=128 + signal.SIGTERM)
    steps = [int(path.name) for path in (tmp_path / "stopped" / "checkpoints").iterdir() if path.name.isdigit()]
    assert 5 <= max(steps) < 100_000


@pytest.mark.parametrize("fault", [AssertionError(), RuntimeError("Unable to initialize backend 'tpu'\nmore")])
def test_a_platform_that_cannot_start_is_named(monkeypatch, fault):
    def devices():
        raise fault

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(UserError, match=r"JAX cannot start on .* \((AssertionError|Unable .*)\); install JAX"):
        parallel.data_mesh()
