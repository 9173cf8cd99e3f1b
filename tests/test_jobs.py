"""Jobs of real processes compute what one process does, on resident and on streamed data, and of detectors."""

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import PIL.Image
import pytest

from resnet_jax.data.crops import ScaleJitter
from resnet_jax.data.dataset import Share
from resnet_jax.data.photographs import Photographs
from resnet_jax.train.writers import read_metrics

ROOT = Path(__file__).resolve().parent.parent
DEVICES = 8  # Over all processes of a job, and of the one process it is compared with.
TINY = {"model.stage_sizes": (1,), "model.width": 4, "batch_size": 16, "log_every": 5, "eval_every": 10,
        "checkpoint_every": 10, "steps": 20}  # fmt: skip
RESIDENT: dict[str, object] = {}


def run(processes, workdir, settings, config="configs/quickstart.py", devices=DEVICES):
    """A whole run on so many simulated devices, a part of them in each process; what each says on stderr."""
    keys = [f"--config.{key}={value}" for key, value in (TINY | settings).items()]
    return [err for _, err in job(processes, devices, "train.py", "--config", config, "--workdir", str(workdir), *keys)]


def job(processes, devices, *arguments):
    """What each process of a program prints, on stdout and on stderr."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, *arguments]
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // processes}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # Compiling takes most of the time.
    }
    started = []
    for number in range(processes):
        own = [f"--coordinator_address={address}", f"--num_processes={processes}", f"--process_id={number}"]
        started.append(
            subprocess.Popen(
                command + (own if processes > 1 else []),
                cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    printed = [process.communicate(timeout=400) for process in started]
    assert [process.returncode for process in started] == [0] * processes, [err[-1500:] for _, err in printed]
    return printed


def parameters(workdir, step, part="params"):
    path = workdir.absolute() / "checkpoints" / str(step) / "state"
    with (
        ocp.PyTreeCheckpointer() as checkpointer
    ):  # As NumPy's arrays: this process has not the devices that saved them.
        numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), checkpointer.metadata(path).item_metadata.tree
        )
        state = checkpointer.restore(path, restore_args=numpy)
    return np.concatenate([np.ravel(leaf) for leaf in _leaves(state[part])])


def assert_equal_records(records, expected):
    for record, other in zip(records, expected, strict=True):
        assert record.keys() == other.keys()
        for name in record.keys() - {"images_per_second"}:
            np.testing.assert_allclose(record[name], other[name], rtol=2e-3, err_msg=name)


def _leaves(tree):
    for _, value in sorted(tree.items()):
        yield from _leaves(value) if isinstance(value, dict) else [np.asarray(value)]


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    """Settings for photographs; 10 to evaluate on, which no number of devices divides."""
    root = tmp_path_factory.mktemp("photographs")
    for split, count in (("train", 40), ("val", 10)):
        for i in range(count):
            path = root / split / f"class{i % 3}" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(i).integers(256, size=(20 + i % 5, 30 - i % 7, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(path)
    return {
        "data.kind": "photographs", "data.name": "folder", "data_dir": str(root), "data.crop_size": 12,
        "data.crop.shorter_side": (14, 20), "data.eval_shorter_side": 14, "transforms.random_crop.pad": 2,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["resident", "streamed"])
def test_four_processes_train_what_one_does_and_two_and_one_go_on_from_them(tmp_path, streamed, kind):
    settings = streamed if kind == "streamed" else RESIDENT
    one, four = tmp_path / "one", tmp_path / "four"
    run(1, one, settings)
    messages = run(4, four, settings)
    # One process writes the log.
    assert [("step 20/20" in text) for text in messages] == [True, False, False, False]
    records, expected = read_metrics(four / "metrics.jsonl"), read_metrics(one / "metrics.jsonl")
    assert [record["step"] for record in records] == [5, 10, 15, 20]
    assert_equal_records(records, expected)
    # The sum over devices is taken in another order; nothing else differs.
    difference = np.abs(parameters(four, 20) - parameters(one, 20)).max()
    assert difference < 1e-4, difference

    for processes in (2, 1):  # From the checkpoint that four made of step 10.
        resumed = tmp_path / f"resumed{processes}"
        subprocess.run(["cp", "-r", str(four), str(resumed)], check=True)
        if processes == 2:
            (resumed / "checkpoints" / "20" / "metrics" / "metrics").write_text("damaged")
        else:
            subprocess.run(["rm", "-r", str(resumed / "checkpoints" / "20")], check=True)
        messages = run(processes, resumed, settings)
        assert [text.count("20 is corrupt") for text in messages] == ([1, 0] if processes == 2 else [0])
        assert f"resuming from step 10 in {resumed}" in messages[0]
        difference = np.abs(parameters(resumed, 20) - parameters(one, 20)).max()
        assert difference < 1e-4, difference
        assert [record["step"] for record in read_metrics(resumed / "metrics.jsonl")] == [5, 10, 15, 20]


@pytest.mark.slow
def test_two_processes_score_as_one_does_and_one_of_them_says_so(tmp_path, streamed):
    run(1, tmp_path / "run", streamed)
    table, responses = tmp_path / "results.csv", tmp_path / "responses.csv"
    asked = ("eval.py", "--workdir", str(tmp_path / "run"), f"--results_csv={table}", f"--responses_csv={responses}")
    found, rows = [], []
    for processes in (1, 2):
        printed = [out.splitlines() for out, _ in job(processes, 2, *asked)]
        found.append(json.loads(printed[0][-1]))
        assert not any("{" in line for lines in printed[1:] for line in lines)
        with responses.open(newline="") as file:
            rows.append([(row["layer"], float(row["std"])) for row in csv.DictReader(file)])
    with table.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2  # A line for each time, not for each process.
    one, two = found
    assert (one["num_examples"], one["top1_error"]) == (two["num_examples"], two["top1_error"])
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-4)
    assert [layer for layer, _ in rows[0]] == [layer for layer, _ in rows[1]]
    np.testing.assert_allclose([std for _, std in rows[1]], [std for _, std in rows[0]], rtol=1e-4)


@pytest.mark.slow
def test_two_processes_average_accumulate_and_follow_plateaus_as_one_does(tmp_path):
    settings = {
        "schedule.name": "plateau", "schedule.patience": 1, "schedule.factor": 0.5, "schedule.warmup_steps": 0,
        "ema_decay": 0.9, "accumulate_steps": 2, "bn_recompute_batches": 3, "optimizer.sam_radius": 0.05,
        "optimizer.learning_rate": 1.0, "eval_every": 2, "log_every": 2,
    }  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    run(1, one, settings, devices=4)
    run(2, two, settings, devices=4)
    records, expected = read_metrics(two / "metrics.jsonl"), read_metrics(one / "metrics.jsonl")
    rates = [record["learning_rate"] for record in expected]
    assert rates[0] == 1.0 > rates[-1]  # The error has stood still.
    assert [record["learning_rate"] for record in records] == rates
    assert_equal_records(records, expected)
    for part in ("params", "ema"):  # Whose statistics are those recomputed at the end.
        difference = np.abs(parameters(two, 20, part) - parameters(one, 20, part)).max()
        assert difference < 1e-3, (part, difference)


@pytest.mark.slow
def test_two_processes_train_the_detector_that_one_does_and_one_goes_on_from_them(tmp_path, shapes_folder):
    settings = {
        "data.name": "voc", "data.train": "('train',)", "data.validation": "('val',)",
        "data.short_sides": "(48, 64)", "data.max_side": 64, "model.stage_sizes": "(1, 1)",
        "task.anchor_sizes": "(12.0, 20.0, 28.0)", "batch_size": 4, "eval_batch_size": 4, "steps": 4, "log_every": 2,
        "eval_every": 2, "checkpoint_every": 2, "schedule.warmup_steps": 2, "keep_checkpoints": 3,
    }  # fmt: skip
    # 3 photographs to evaluate on, which 4 devices do not divide.
    folder = tmp_path / "shapes"
    shutil.copytree(shapes_folder, folder)
    split = folder / "ImageSets" / "Main" / "val.txt"
    split.write_text("".join(split.read_text().splitlines(keepends=True)[:3]))
    detector = {"config": "configs/detection_quickstart.py:fpn", "devices": 4}
    settings["data_dir"] = folder
    one, two = tmp_path / "one", tmp_path / "two"
    run(1, one, settings, **detector)
    run(2, two, settings, **detector)
    expected = read_metrics(one / "metrics.jsonl")

    def assert_close(workdir):
        records = read_metrics(workdir / "metrics.jsonl")
        assert [record["step"] for record in records] == [2, 4]
        assert_equal_records(records, expected)
        difference = np.abs(parameters(workdir, 4) - parameters(one, 4)).max()
        assert difference < 1e-4, difference

    assert_close(two)
    shutil.rmtree(two / "checkpoints" / "4")
    (message,) = run(1, two, settings, **detector)
    assert f"resuming from step 2 in {two}" in message
    assert_close(two)


@pytest.mark.parametrize("count", [2, 4])
def test_each_photograph_is_read_once_an_epoch_by_one_process(streamed, count):
    """40 photographs, batches of 8: five steps are an epoch."""
    part = Photographs(
        name="folder", crop=ScaleJitter(shorter_side=(14, 20)), crop_size=12, eval_shorter_side=14, threads=1
    )
    read = []
    for index in range(count):
        dataset = part.load(streamed["data_dir"])
        source = dataset.source("train")
        own = []

        class Recording:
            shorter_side = None

            def __len__(self, source=source):
                return len(source)

            def __getitem__(self, i, source=source, own=own):
                own.append(int(i))
                return source[i]

        dataset._sources["train"] = Recording()
        for _ in dataset.training_batches(3, 8, 0, 5, Share(index, count)):
            pass
        assert len(own) == 40 // count
        read += own
    assert sorted(read) == list(range(40))
