"""What feeding costs: the whole trainer on photographs, beside the bare step and the bare loader, in one run.

    python -m benchmarks.streaming_train --data_dir DIR

DIR holds ImageNet, or a sample of it, as TFDS prepares it; with ``--name folder``, class folders. An accelerator
computes while the host decodes. To see that on a CPU, the first core stands for the accelerator: JAX's threads stay on
it, and Python and the decoding threads on the others. On a GPU or TPU nothing is pinned.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from resnet_jax import build, parallel
from resnet_jax.config import Config, load_config, override
from resnet_jax.data.dataset import Dataset
from resnet_jax.data.feed import training_inputs
from resnet_jax.experiment.training import train
from resnet_jax.host_memory import keep_freed_memory
from resnet_jax.kernels import onednn
from resnet_jax.train.state import init_state
from resnet_jax.train.step import make_train_step
from resnet_jax.train.writers import read_metrics

_RECIPE = Path(__file__).resolve().parent.parent / "configs" / "resnet50_imagenet.py"


def benchmark_config(arguments: argparse.Namespace) -> Config:
    """A small network, so that the loader has to keep up."""
    changes = {
        "data_dir": arguments.data_dir,
        "data.name": arguments.name,
        "model.name": arguments.model,
        "model.stride_placement": None,
        "model.dtype": "float32",
        "model.bn_group_size": None,
        "model.width": arguments.width,
        "batch_size": arguments.batch_size,
        "eval_batch_size": arguments.batch_size,
        "schedule.name": "constant",
        "schedule.warmup_steps": 0,
        "optimizer.learning_rate": 1e-3,
        "optimizer.learning_rate_batch": None,
        # The first interval holds the compilation, and the last ends in an evaluation that is not timed.
        "log_every": arguments.steps,
        **dict.fromkeys(("steps", "eval_every", "checkpoint_every"), 4 * arguments.steps),
    }
    return override(load_config(str(_RECIPE)), changes)


def bare_step(config: Config, dataset: Dataset, num_steps: int) -> float:
    """Images/s of the trainer's compiled step on one batch that stays on the device."""
    mesh, intervals = parallel.data_mesh(), build.intervals(config, dataset.num_train)
    model = build.make_model(config, len(dataset.class_names), mesh)
    task = build.make_task(config, model, dataset, build.make_normalization(config, dataset), mesh)
    optimizer, schedule = build.make_optimizer(config, model), build.make_schedule(config, intervals)
    settings = build.step_settings(config, intervals)
    step = make_train_step(task, dataset, optimizer, schedule, settings, config.steps_per_dispatch, mesh)
    rng = np.random.default_rng(0)
    shape = (1, config.batch_size, *dataset.image_shape)
    batches = {
        "image": rng.integers(0, 256, shape, dtype=np.uint8),
        "label": rng.integers(0, len(dataset.class_names), shape[:2], dtype=np.int32),
    }
    on_device = parallel.from_local(batches, parallel.sharded_batch(mesh, axis=1))
    state = init_state(task, optimizer, config.seed, config.ema_decay, settings.hold_error, dataset.image_shape, mesh)
    state, _ = step(state, None, on_device)
    jax.block_until_ready(state)
    start = time.perf_counter()
    for _ in range(num_steps):
        state, _ = step(state, None, on_device)
    jax.block_until_ready(state)
    return num_steps * config.batch_size / (time.perf_counter() - start)


def bare_loader(config: Config, dataset: Dataset, num_steps: int) -> float:
    """Images/s of batches placed on the device and thrown away."""
    warm = 8  # What is made ahead of time is not counted.
    mesh = parallel.data_mesh()
    _, inputs = training_inputs(dataset, config.seed, config.batch_size, 1, 0, num_steps + warm, mesh)
    start = 0.0
    for number, batch in enumerate(inputs):
        jax.block_until_ready(batch)
        if number == warm - 1:
            start = time.perf_counter()
    return num_steps * config.batch_size / (time.perf_counter() - start)


def whole_trainer(config: Config) -> float:
    """The images/s that a run reports for its intervals, the first two left out."""
    with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stderr(io.StringIO()):
        train(config, Path(workdir))
        records = read_metrics(Path(workdir) / "metrics.jsonl")
    return statistics.median(record["images_per_second"] for record in records[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--name", default="imagenet2012", help="of the data set")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--width", type=int, default=8, help="of the first stage; the network's own is 64")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10, help="steps a measurement")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    onednn.library()  # Its threads, as many as it sees cores now, stay on the core, too.
    on_cpu = jax.default_backend() == "cpu"  # Starts JAX's threads, which inherit the core.
    if on_cpu and len(cores) < 2:
        parser.error("on a CPU this needs two cores: one computes, the others decode")
    os.sched_setaffinity(0, cores[1:] if on_cpu else cores)
    config = benchmark_config(arguments)
    dataset = build.make_dataset(config)
    speeds: dict[str, list[float]] = {"bare step": [], "bare loader": [], "whole trainer": []}
    for number in range(arguments.rounds):
        speeds["bare step"].append(bare_step(config, dataset, arguments.steps))
        speeds["bare loader"].append(bare_loader(config, dataset, 2 * arguments.steps))
        speeds["whole trainer"].append(whole_trainer(config))
        print(f"round {number + 1}: " + ", ".join(f"{name} {v[-1]:.0f}" for name, v in speeds.items()), flush=True)
    slower = [min(pair) for pair in zip(speeds["bare step"], speeds["bare loader"], strict=True)]
    share = statistics.median(a / b for a, b in zip(speeds["whole trainer"], slower, strict=True))
    title = f"{arguments.model} of width {arguments.width}, batch {arguments.batch_size}, 224 x 224"
    print(f"\n{title}, {jax.devices()[0].device_kind}, {len(cores)} cores, jax {jax.__version__}, medians\n")
    print("| | images/s (min-max) |\n|---|---|")
    for name, values in speeds.items():
        print(f"| {name} | {statistics.median(values):.0f} ({min(values):.0f}-{max(values):.0f}) |")
    print(f"\nthe trainer's share of the slower of the two alone: {share:.2f}")
    print(json.dumps({"title": title, "images_per_second": speeds, "trainer_share": share}))


if __name__ == "__main__":
    main()
