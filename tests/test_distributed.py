"""Real processes on loopback: what they must agree on, and what becomes of the others when one is gone."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import PIL.Image
import pytest

from resnet_jax import distributed
from resnet_jax.errors import UserError
from resnet_jax.interop.torch_weights import save_torch
from resnet_jax.models import create_model
from resnet_jax.train.writers import read_metrics

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {"model.stage_sizes": (1,), "model.width": 4, "batch_size": 16, "log_every": 5, "eval_every": 10,
            "checkpoint_every": 10, "steps": 100_000}  # fmt: skip
LOST_AFTER = 15  # On a machine with more to do a process may get no time for some seconds.


def free_address():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


class Job:
    """``count`` processes of train.py on two simulated devices each.

    own: settings of one by its number; so ``workdirs``, ``environments`` and ``roots``, of checkouts.
    """

    def __init__(self, workdir, count=2, own=None, workdirs=None, absent=(), environments=None, roots=None, **settings):
        address, own = free_address(), own or {}
        environment = os.environ | {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # Compiling takes most of the time.
        }
        self.workdir, self.processes = workdir, {}
        for number in set(range(count)) - set(absent):
            place = (workdirs or {}).get(number, workdir)
            command = [sys.executable, "train.py", "--config", "configs/quickstart.py", "--workdir", str(place)]
            if count > 1:
                command += [f"--coordinator_address={address}", f"--num_processes={count}", f"--process_id={number}"]
            command += [f"--lost_after={LOST_AFTER}", "--start_timeout=60" if not absent else "--start_timeout=12"]
            values = SETTINGS | settings | own.get(number, {})
            command += [f"--config.{key}={value}" for key, value in values.items()]
            self.processes[number] = subprocess.Popen(
                command,
                cwd=(roots or {}).get(number, ROOT),
                env=environment | (environments or {}).get(number, {}),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            process.kill()
            process.wait()
            process.stderr.close()

    def wait_for_steps(self):
        deadline = time.monotonic() + 200
        while not read_metrics(self.workdir / "metrics.jsonl"):
            assert time.monotonic() < deadline
            for process in self.processes.values():
                assert process.poll() is None, process.stderr.read()[-2000:]
            time.sleep(0.1)

    def end(self, number, status, timeout=200):
        """The lines of a process on stderr, without those of its progress."""
        _, errors = self.processes[number].communicate(timeout=timeout)
        assert self.processes[number].returncode == status, errors[-3000:]
        return [line for line in errors.splitlines() if line and ": train loss" not in line]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_the_others_name_a_process_that_is_killed_or_stopped(tmp_path, victim, signum):
    with Job(tmp_path / "run") as job:
        job.wait_for_steps()
        job.processes[victim].send_signal(signum)
        begun = time.monotonic()
        lines = job.end(1 - victim, distributed.LOST, timeout=LOST_AFTER + 30)
        assert time.monotonic() - begun < LOST_AFTER + 15
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"error: process {victim} ({socket.gethostname()}, pid ") and " was lost: " in lines[0]


def test_a_process_is_gone_once_its_port_is_closed():
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        listening.listen()
        address = f"localhost:{listening.getsockname()[1]}"
        assert not distributed._gone(address, within=0.1)
        closing = threading.Timer(0.3, listening.close)
        closing.start()
        assert distributed._gone(address, within=10)
        closing.join()
    assert distributed._gone(address, within=0)


@pytest.mark.slow
def test_a_process_that_never_comes_is_an_error_within_the_time(tmp_path):
    with Job(tmp_path / "run", absent=[1]) as job:
        begun = time.monotonic()
        (line,) = job.end(0, distributed.LOST, timeout=120)
        assert "not all processes have come" in line and "within 12 s" in line
        assert time.monotonic() - begun < 60


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "named"),
    [
        (
            {"optimizer.learning_rate": 0.2, "seed": 3},
            ["config.optimizer.learning_rate 0.2 (and not 0.1)", "config.seed 3 (and not 0)"],
        ),
        ({"steps": 20, "log_every": 10}, ["config.steps 20 (and not 100000)", "config.log_every 10 (and not 5)"]),
        ({"model.width": 8}, ["config.model.width 8 (and not 4)"]),
    ],
)
def test_different_configs_are_found_before_the_first_step(tmp_path, own, named):
    with Job(tmp_path / "run", own={1: own}) as job:
        for number in (0, 1):
            (line,) = job.end(number, 2)
            assert line.startswith("error: process 1 (") and " differs from process 0 (" in line
            assert all(part in line for part in named)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_different_code_is_found_before_the_first_step(tmp_path):
    checkout = tmp_path / "checkout"
    for name in ("resnet_jax", "configs"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", checkout)
    with (checkout / "resnet_jax" / "models" / "layers.py").open("a") as file:
        file.write("# Another version.\n")
    with Job(tmp_path / "run", roots={1: checkout}) as job:
        for number in (0, 1):
            (line,) = job.end(number, 2)
            assert line.startswith("error: process 1 (") and "it has the code of resnet_jax " in line
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "named"),
    [
        (range(12), "training examples 12 (and not 16), the names of examples "),
        ([*range(15), 99], "the content of examples "),
    ],
)
def test_different_data_are_found_before_the_first_step(tmp_path, seeds, named):
    """One photograph of the same name is another, or some are absent."""
    for number, own in enumerate((range(16), seeds)):
        for i, seed in enumerate(own):
            pixels = np.random.default_rng(seed).integers(256, size=(20, 30, 3), dtype=np.uint8)
            for split in ("train", "val"):
                path = tmp_path / str(number) / split / f"class{i % 2}" / f"{i:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                if split == "train" or i < 8:
                    PIL.Image.fromarray(pixels).save(path)
    settings = {
        "data.kind": "photographs", "data.name": "folder", "data.crop_size": 12, "data.crop.shorter_side": (14, 20),
        "data.eval_shorter_side": 14, "transforms.random_crop.pad": 2,
    }  # fmt: skip
    own = {number: {"data_dir": str(tmp_path / str(number))} for number in (0, 1)}
    with Job(tmp_path / "run", own=own, **settings) as job:
        for number in (0, 1):
            (line,) = job.end(number, 2)
            assert line.startswith("error: process 1 (") and f"it has {named}" in line, line
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_different_weights_are_found_before_the_first_step(tmp_path):
    model = create_model("resnet20", stage_sizes=(1,), width=4)
    homes = {number: tmp_path / str(number) for number in (0, 1)}
    for number, home in homes.items():
        home.mkdir()
        variables = model.init(jax.random.key(number), np.zeros((1, 8, 8, 3), np.float32))
        save_torch(variables, home / "weights.safetensors", model=model)
    environments = {number: {"HOME": str(home)} for number, home in homes.items()}
    settings = {"init.name": "weights", "init.path": "~/weights.safetensors"}
    with Job(tmp_path / "run", environments=environments, **settings) as job:
        for number in (0, 1):
            *_, line = job.end(number, 2)
            assert (
                line.startswith("error: process 1 (") and "it has the weights and normalisation of the start " in line
            ), line
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_workdirs_that_are_not_shared_are_found_before_the_first_step(tmp_path):
    with Job(tmp_path / "one", workdirs={1: tmp_path / "other"}) as job:
        for number in (0, 1):
            (line,) = job.end(number, 2)
            assert "process 1 (" in line and "does not see the --workdir" in line
    assert not list(tmp_path.glob("*/checkpoints"))


@pytest.mark.slow
def test_what_one_process_alone_finds_wrong_ends_all(tmp_path):
    with Job(tmp_path / "run", own={1: {"batch_size": 17}}) as job:
        (own,) = job.end(1, 2)
        (told,) = job.end(0, 2)
    assert "batch_size 17 is not divisible by the 4 devices" in own
    assert told.startswith("error: process 1 (") and "stopped: config.batch_size 17" in told


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [(("localhost:1", None, None), "--num_processes and --process_id"), ((None, 2, 0), "--coordinator_address")],
)
def test_half_given_addresses_are_an_error(arguments, missing):
    with pytest.raises(UserError, match=f"^{missing} missing; give all of"):
        distributed.start(*arguments)


def test_addresses_without_a_port_and_endless_times_are_an_error():
    with pytest.raises(UserError, match="address is 'nohost'; give HOST:PORT"):
        distributed.start("nohost", 2, 1)
    for times in ({"start_timeout": float("inf")}, {"lost_after": float("nan")}):
        with pytest.raises(UserError, match="must be finite numbers of seconds"):
            distributed.start("localhost:1", 2, 1, **times)


def test_half_given_variables_are_an_error(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    with pytest.raises(UserError, match="not JAX_NUM_PROCESSES, JAX_PROCESS_ID"):
        distributed.start()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES is 'two'"):
        distributed.start()


def test_differences_are_named_in_the_order_of_the_facts(monkeypatch):
    def with_another_process(name, value):
        other = {**json.loads(value), "training": "12", "content": "b"} if name == "facts" else None
        return [value, json.dumps(other)]

    monkeypatch.setattr(distributed, "_job", SimpleNamespace(hosts=["process 0", "process 1"]))
    monkeypatch.setattr(distributed, "exchange", with_another_process)
    with pytest.raises(UserError, match=r"it has training 12 \(and not 16\), content b \(and not a\); start every"):
        distributed.agree({"training": "16", "code": "same", "content": "a"})


def test_one_process_agrees_with_itself():
    distributed.agree({"config.seed": "0"})
    assert distributed.exchange("name", "value") == ["value"]
    assert distributed.from_process_0("name", lambda: [1, None]) == [1, None]
    assert not distributed.everyone(False) and distributed.everyone(True)
    assert distributed.stopping() is None
