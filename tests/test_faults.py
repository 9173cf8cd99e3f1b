"""Faults put into real training runs: one line, a documented status, and nothing lost that was saved."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from benchmarks.soak import digest
from resnet_jax.train.writers import read_metrics
from tests.test_distributed import ROOT, SETTINGS, Job


def wait_until(condition, job):
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline
        for process in job.processes.values():
            assert process.poll() is None, process.stderr.read()[-3000:]
        time.sleep(0.02)


def saved(workdir):
    """The steps that are saved as a whole."""
    folder = workdir / "checkpoints"
    names = os.listdir(folder) if folder.exists() else []
    return sorted(int(name) for name in names if name.isdigit())


def steps(workdir):
    return [record["step"] for record in read_metrics(workdir / "metrics.jsonl")]


def assert_resumes(workdir, step, **settings):
    """The same command goes on from ``step`` without a word of damage, and the record has no gap."""
    done = len(steps(workdir))
    with Job(workdir, count=1, **settings) as job:
        wait_until(lambda: len(steps(workdir)) > done + 2, job)
        job.processes[0].kill()
        _, errors = job.processes[0].communicate()
    assert f"resuming from step {step} in {workdir}" in errors and "warning" not in errors
    assert steps(workdir) == list(range(5, steps(workdir)[-1] + 1, 5))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB. It is skipped where mounting is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode:
        pytest.skip(f"needs to mount a file system: {mount.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_disk_that_fills_up_in_mid_run_loses_nothing(small_disk, count):
    workdir, filler = small_disk / "run", small_disk / "filler"
    with Job(workdir, count=count) as job:
        wait_until(lambda: saved(workdir), job)
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(4096))
        for number in range(count):
            lines = job.end(number, 2)
            assert len(lines) == 1 and "No space left on device" in lines[0], "\n".join(lines)
    (*_, newest) = saved(workdir)
    filler.unlink()
    assert_resumes(workdir, newest)


@pytest.mark.slow
def test_files_that_may_not_be_written_any_longer_lose_nothing(tmp_path):
    """A limit on the size of files, set in mid-run: no file of the process can grow, as with a quota."""
    workdir = tmp_path / "run"
    with Job(workdir, count=1) as job:
        wait_until(lambda: saved(workdir), job)
        resource.prlimit(job.processes[0].pid, resource.RLIMIT_FSIZE, (0, 0))
        lines = job.end(0, 2)
        assert len(lines) == 1 and "File too large" in lines[0], "\n".join(lines)
    (*_, newest) = saved(workdir)
    assert_resumes(workdir, newest)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_checkpoint_folder_removed_in_mid_run_is_named_and_made_anew(tmp_path, count):
    workdir = tmp_path / "run"
    with Job(workdir, count=count) as job:
        wait_until(lambda: len(saved(workdir)) > 1, job)
        removed = saved(workdir)[-1]
        (workdir / "checkpoints").rename(tmp_path / "taken")
        wait_until(lambda: len(saved(workdir)) > 1, job)
        for process in job.processes.values():
            process.kill()
        _, errors = job.processes[0].communicate()
    assert errors.count(f"warning: {workdir}/checkpoints was removed") == 1
    assert "Traceback" not in errors
    (*_, newest) = saved(workdir)
    assert newest > removed
    assert_resumes(workdir, newest)


@pytest.fixture
def photographs(tmp_path):
    """Settings for a folder of 24 photographs to train on and 6 to evaluate on."""
    root = tmp_path / "photographs"
    for split, count in (("train", 24), ("val", 6)):
        for i in range(count):
            path = root / split / f"class{i % 3}" / f"{i:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(np.random.default_rng(i).integers(256, size=(20, 30, 3), dtype=np.uint8)).save(path)
    return {
        "data.kind": "photographs", "data.name": "folder", "data_dir": str(root), "data.crop_size": 12,
        "data.crop.shorter_side": (14, 20), "data.eval_shorter_side": 14, "transforms.random_crop.pad": 2,
    }  # fmt: skip


@pytest.mark.slow
def test_a_killed_data_worker_is_named_and_the_run_resumes(tmp_path, photographs):
    workdir, settings = tmp_path / "run", photographs | {"data.workers": 2, "data.threads": 1}
    with Job(workdir, count=1, **settings) as job:
        wait_until(lambda: saved(workdir), job)
        pid = job.processes[0].pid
        children = [
            int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()
        ]
        workers = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        lines = job.end(0, 2)
        assert len(lines) == 1 and "a process that reads the data (config.data.workers) was killed" in lines[0], lines
    assert_resumes(workdir, saved(workdir)[-1], **settings)


@pytest.mark.slow
def test_a_photograph_damaged_in_mid_run_is_named_once_and_one_removed_ends_the_run(tmp_path, photographs):
    workdir, settings = tmp_path / "run", photographs | {"data.max_unreadable": 1}
    root = Path(photographs["data_dir"])
    with Job(workdir, count=1, **settings) as job:
        wait_until(lambda: saved(workdir), job)
        (root / "train" / "class1" / "04.jpg").write_bytes(b"no photograph")
        done = len(steps(workdir))
        wait_until(lambda: len(steps(workdir)) > done + 10, job)
        (root / "train" / "class2" / "05.jpg").unlink()
        named, ended = job.end(0, 2)
    assert named.startswith("warning: train/class1/04.jpg (") and named.endswith("cannot be decoded and is skipped")
    assert ended.startswith(f"error: photograph {root}/train/class2/05.jpg cannot be read")


@pytest.mark.slow
def test_an_evaluation_and_a_second_trainer_leave_a_training_run_alone(tmp_path):
    workdir = tmp_path / "run"
    often = {"checkpoint_every": 5}
    with Job(workdir, count=1, **often) as job:
        wait_until(lambda: saved(workdir), job)
        with Job(workdir, count=1, **often) as second:
            (line,) = second.end(0, 2)
            assert f"another process trains in {workdir}" in line
        for which in ("latest", "best"):
            score = subprocess.run(
                [sys.executable, "eval.py", "--workdir", str(workdir), f"--checkpoint={which}"],
                cwd=ROOT, capture_output=True, text=True, timeout=200,
            )  # fmt: skip
            assert score.returncode == 0 and "warning" not in score.stderr, score.stderr
        done = len(steps(workdir))
        wait_until(lambda: len(steps(workdir)) > done + 2, job)
    assert steps(workdir) == list(range(5, steps(workdir)[-1] + 1, 5))


# train.py that sends itself a signal: "PHASE NUMBER SIGNALS" is before its own arguments.
SIGNALLED = """
import os, signal, sys, threading, time

phase, number, signals = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
del sys.argv[1:4]
from resnet_jax.programs import train as program
from resnet_jax import stopping
from resnet_jax.experiment import training
from resnet_jax.train import checkpoint, loop

calls = 0

def send():
    for i in range(signals):
        if phase == "compilation":
            time.sleep(1.1 if i else 0.2)
        os.kill(os.getpid(), signal.SIGTERM)

def at(function):
    def wrapper(*args, **kwargs):
        global calls
        calls += 1
        if calls == number:
            thread = threading.Thread(target=send)
            thread.start()
            if phase != "compilation":  # Which takes longer than the signal.
                thread.join()
        result = function(*args, **kwargs)
        assert phase != "compilation" or calls != number or not thread.is_alive()
        return result
    return wrapper

if phase == "preparation":
    training.build.make_dataset = at(training.build.make_dataset)
elif phase in ("compilation", "step"):
    make = loop.make_train_step
    loop.make_train_step = lambda *args: at(make(*args))
elif phase == "evaluation":
    stopping.point = at(stopping.point)
elif phase == "save":
    checkpoint._checksums = at(checkpoint._checksums)
program.main()
"""


@pytest.mark.slow
def test_a_signal_in_any_phase_leads_to_a_whole_checkpoint_and_its_status(tmp_path):
    """One run that is stopped in each of its phases in turn ends with the bits of one that is not."""
    program = tmp_path / "signalled.py"
    program.write_text(SIGNALLED)
    # The save of step 40 goes on beside the next steps, of a few milliseconds each.
    settings = SETTINGS | {"steps": 120, "eval_every": 80, "checkpoint_every": 40}
    # So that each start compiles the step.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_FLAGS": ""}

    def run(workdir, status, *command):
        command = [sys.executable, *command, "--config", "configs/quickstart.py", "--workdir", str(workdir)]
        command += [f"--config.{key}={value}" for key, value in settings.items()]
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert ended.returncode == status and "Traceback" not in ended.stderr, ended.stderr[-3000:]
        return ended.stderr

    workdir, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    run(undisturbed, 0, "train.py")
    stopped = 128 + signal.SIGTERM
    run(workdir, -signal.SIGTERM, program, "preparation", "1", "1")
    assert not workdir.exists()
    run(workdir, stopped, program, "compilation", "1", "1")
    (first,) = saved(workdir)
    assert first <= 2
    run(workdir, stopped, program, "step", "5", "1")
    assert 5 < saved(workdir)[-1] <= 8
    run(workdir, stopped, program, "save", "2", "1")  # The first are verified on resuming.
    assert 40 <= saved(workdir)[-1] < 80
    run(workdir, stopped, program, "evaluation", "1", "1")
    assert saved(workdir)[-1] == 80
    begun = saved(workdir)
    assert "ended without saving; the last checkpoint is kept" in run(
        workdir, stopped, program, "compilation", "1", "2"
    )
    assert saved(workdir) == begun
    assert "trained to step 120" in run(workdir, 0, program, "save", "2", "1")  # The last.
    assert digest(workdir, 120) == digest(undisturbed, 120)
