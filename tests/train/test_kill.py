"""A run killed with SIGKILL at random moments ends with the bits and the record of a run never killed."""

import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import resnet_jax
from resnet_jax.train.writers import read_metrics

ROOT = Path(__file__).resolve().parent.parent.parent
RANDOM_KILLS = 10
KILLS_AT_A_SAVE = 5
STEPS = 1600
BATCH_SIZE = 16
STREAMED_STEPS = 250


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """Of the training processes: one device, and the programs that one of them compiled for all."""
    return {
        **os.environ,
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }


def start_program(
    config: str, workdir: Path, settings: dict[str, object], environment: dict[str, str]
) -> subprocess.Popen:
    command = [sys.executable, "train.py", "--config", config, "--workdir", str(workdir)]
    command += [f"--config.{key}={value}" for key, value in settings.items()]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def start(workdir: Path, environment: dict[str, str], steps: int = STEPS) -> subprocess.Popen:
    settings = {
        "model.stage_sizes": "(1,)", "model.width": 4, "batch_size": BATCH_SIZE, "steps": steps, "log_every": 10,
        "eval_every": 100, "checkpoint_every": 20,
    }  # fmt: skip
    return start_program("configs/quickstart.py", workdir, settings, environment)


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]


def wait_for(condition, process: subprocess.Popen, interval: float) -> None:
    while process.poll() is None and not condition():
        time.sleep(interval)


def final_state(workdir: Path, step: int) -> dict[str, np.ndarray]:
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(workdir.absolute() / "checkpoints" / str(step) / "state")
    return state


def leaves(tree, prefix=""):
    for key, value in sorted(tree.items()) if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, (dict, list, tuple)):
            yield from leaves(value, f"{prefix}/{key}")
        elif value is not None:
            yield f"{prefix}/{key}", np.asarray(value)


def assert_same_run(killed: Path, undisturbed: Path, steps: int, log_every: int) -> None:
    """The same final state to the bit, and the same records, each of the losses since the one before."""
    expected, result = (dict(leaves(final_state(folder, steps))) for folder in (undisturbed, killed))
    assert result.keys() == expected.keys() and len(expected) > 10
    for name, value in expected.items():
        np.testing.assert_array_equal(result[name], value, err_msg=name)
    records, expected_records = (read_metrics(folder / "metrics.jsonl") for folder in (killed, undisturbed))
    assert [record["step"] for record in records] == list(range(log_every, steps + 1, log_every))
    for record, other in zip(records, expected_records, strict=True):
        assert {**record, "images_per_second": 0} == {**other, "images_per_second": 0}


@pytest.mark.slow
def test_a_run_killed_once_ends_like_one_never_killed(tmp_path, environment):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    finish(start(undisturbed, environment, steps=200))
    process = start(killed, environment, steps=200)
    wait_for(lambda: len(read_metrics(killed / "metrics.jsonl")) >= 5, process, interval=0.001)
    assert process.poll() is None, "the run ended before it could be killed"
    process.kill()
    process.communicate()
    finish(start(killed, environment, steps=200))
    assert_same_run(killed, undisturbed, 200, log_every=10)


@pytest.mark.slow
def test_a_killed_fine_tune_ends_like_one_never_killed_although_the_weights_are_gone(tmp_path, environment):
    model = resnet_jax.create_model("resnet20", 10, width=4, stage_sizes=(1, 1))
    weights = tmp_path / "weights.safetensors"
    images = np.zeros((1, 32, 32, 3), np.float32)
    resnet_jax.save_torch(model.init(jax.random.key(7), images, train=False), weights, model=model)
    settings = {
        "model.stage_sizes": "(1,1)", "model.width": 4, "batch_size": BATCH_SIZE, "steps": 200, "log_every": 10,
        "eval_every": 100, "checkpoint_every": 20, "ema_decay": 0.99, "init.name": "weights", "init.path": str(weights),
        "finetune.freeze": "('stem',)", "finetune.layer_decay": 0.7, "finetune.head_rate": 5.0,
    }  # fmt: skip
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    finish(start_program("configs/quickstart.py", undisturbed, settings, environment))
    process = start_program("configs/quickstart.py", killed, settings, environment)
    wait_for(lambda: len(read_metrics(killed / "metrics.jsonl")) >= 5, process, interval=0.001)
    assert process.poll() is None, "the run ended before it could be killed"
    process.kill()
    process.communicate()
    weights.unlink()
    finish(start_program("configs/quickstart.py", killed, settings, environment))
    assert_same_run(killed, undisturbed, 200, log_every=10)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_like_one_never_killed(tmp_path, environment):
    seed = random.randrange(10**6)
    print(f"random.seed({seed})")  # Shown when the test fails.
    rng = random.Random(seed)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    begun = time.monotonic()
    process = start(undisturbed, environment)
    wait_for((undisturbed / "metrics.jsonl").exists, process, interval=0.01)
    wait_for(lambda: read_metrics(undisturbed / "metrics.jsonl"), process, interval=0.01)
    seconds_to_first_record = time.monotonic() - begun
    finish(process)
    speeds = [record["images_per_second"] for record in read_metrics(undisturbed / "metrics.jsonl")]
    # At most 150 steps a kill, on a fast machine too, so that the run is not through before the last.
    seconds_of_training = 150 * BATCH_SIZE / statistics.median(speeds)

    checkpoints = killed / "checkpoints"

    def being_saved() -> set[str]:
        """The checkpoints that Orbax has not yet renamed into place."""
        names = os.listdir(checkpoints) if checkpoints.exists() else []
        return {name for name in names if "orbax-checkpoint-tmp" in name}

    def kill(process: subprocess.Popen) -> None:
        alive = process.poll() is None
        process.kill()
        _, errors = process.communicate()
        assert alive, f"the run ended before it could be killed: {errors[-2000:]}"

    # Any moment of the start-up, and any moment of training through some dozen checkpoints.
    for number in range(RANDOM_KILLS):
        process = start(killed, environment)
        if number % 2:
            time.sleep(rng.uniform(0, 0.5 * seconds_to_first_record))
        else:
            done = len(read_metrics(killed / "metrics.jsonl"))
            wait_for(lambda done=done: len(read_metrics(killed / "metrics.jsonl")) > done, process, interval=0.01)
            time.sleep(rng.uniform(0, seconds_of_training))
        kill(process)

    kills_in_a_save = 0
    for number in range(KILLS_AT_A_SAVE):
        process = start(killed, environment)
        old = being_saved()
        wait_for(lambda old=old: being_saved() - old, process, interval=0.001)
        if number:  # The first at once; the others up to the renaming, and the removal of older checkpoints.
            time.sleep(rng.uniform(0, 0.1))
        kill(process)
        kills_in_a_save += bool(being_saved())
    finish(start(killed, environment))

    assert kills_in_a_save >= 1
    assert_same_run(killed, undisturbed, STEPS, log_every=10)


@pytest.mark.slow
def test_a_killed_detector_ends_like_one_never_killed(tmp_path, shapes_folder, environment):
    settings = {
        "data_dir": shapes_folder, "data.name": "voc", "data.train": "('train',)", "data.validation": "('val',)",
        "data.short_sides": "(48, 64)", "data.max_side": 64, "model.width": 4, "model.stage_sizes": "(1, 1)",
        "task.anchor_sizes": "(12.0, 20.0, 28.0)", "batch_size": 4, "eval_batch_size": 4, "steps": 60, "log_every": 5,
        "eval_every": 20, "checkpoint_every": 10, "schedule.warmup_steps": 5,
    }  # fmt: skip
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    finish(start_program("configs/detection_quickstart.py:fpn", undisturbed, settings, environment))
    for records in (3, 8):  # Between two checkpoints.
        process = start_program("configs/detection_quickstart.py:fpn", killed, settings, environment)
        wait_for(
            lambda records=records: len(read_metrics(killed / "metrics.jsonl")) >= records, process, interval=0.001
        )
        assert process.poll() is None, "the run ended before it could be killed"
        process.kill()
        process.communicate()
    finish(start_program("configs/detection_quickstart.py:fpn", killed, settings, environment))
    assert_same_run(killed, undisturbed, 60, log_every=5)
    assert read_metrics(killed / "metrics.jsonl")[-1]["validation_mAP"] >= 0


def start_streamed(workdir: Path, photographs: Path, environment: dict[str, str]) -> subprocess.Popen:
    settings = {
        "data.name": "folder", "data_dir": str(photographs), "data.crop_size": 32, "data.crop.shorter_side": "(36, 48)",
        "data.eval_shorter_side": 36, "model.stage_sizes": "(1,)", "model.width": 4, "batch_size": 8,
        "eval_batch_size": 8, "steps": STREAMED_STEPS, "log_every": 5, "eval_every": 50, "checkpoint_every": 20,
        "ema_decay": 0.99, "bn_recompute_batches": 3, "model.bn_group_size": 8,
    }  # fmt: skip
    return start_program("configs/imagenet_paper.py:resnet18", workdir, settings, environment)


@pytest.mark.slow
def test_a_killed_run_on_photographs_sees_the_same_batches_again(tmp_path, photographs, environment):
    seed = random.randrange(10**6)
    print(f"random.seed({seed})")  # Shown when the test fails.
    rng = random.Random(seed)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    finish(start_streamed(undisturbed, photographs, environment))

    def steps_done() -> int:
        return max((record["step"] for record in read_metrics(killed / "metrics.jsonl")), default=0)

    for first, last in ((20, 120), (120, 230)):  # Any moment of these steps, most of them between two checkpoints.
        process, step = start_streamed(killed, photographs, environment), rng.randrange(first, last)
        wait_for(lambda step=step: steps_done() >= step, process, interval=0.001)
        time.sleep(rng.uniform(0, 0.02))
        assert process.poll() is None, "the run ended before it could be killed"
        process.kill()
        process.communicate()
    process = start_streamed(killed, photographs, environment)
    _, messages = process.communicate(timeout=300)
    assert process.returncode == 0, messages[-2000:]
    assert "resuming from step" in messages

    assert_same_run(killed, undisturbed, STREAMED_STEPS, log_every=5)
