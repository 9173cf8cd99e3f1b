"""Training speed of a CIFAR network: the bare step, the whole trainer, and PyTorch, in turn in one run.

    python -m benchmarks.cifar_train

Batch 128, 32x32, float32, on as many CPU threads as there are cores, or both on the GPU. Each round times all three, so
that a drift of the machine's speed cancels in the ratios. PyTorch runs channels_last, on random labels with a small
learning rate: constant labels or a diverging loss produce denormals, which would slow it several times. Needs PyTorch.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch
import torch.nn.functional as F
from ml_collections import ConfigDict

from benchmarks.torch_resnet import cifar_resnet
from resnet_jax import parallel, recipes
from resnet_jax.config import make_model
from resnet_jax.train.loop import train
from resnet_jax.train.schedules import make_schedule
from resnet_jax.train.state import init_state
from resnet_jax.train.step import train_step
from resnet_jax.writers import read_metrics


def benchmark_config(layers: int, batch_size: int, steps: int) -> ConfigDict:
    """The digits at 32x32 through the full-size network: the same work as CIFAR-10, and no data set to prepare."""
    config = recipes.cifar10_paper(f"resnet{layers}")
    config.model.bn_group_size = None
    config.data.name = "digits"
    config.batch_size = batch_size
    config.schedule.name = "constant"
    config.optimizer.learning_rate = 1e-3
    # The first interval holds the compilation, and the last ends in an evaluation that is not timed.
    config.steps = 3 * steps
    config.log_every = steps
    config.eval_every = config.checkpoint_every = 3 * steps
    return config


def jax_step(layers: int, batch_size: int) -> Callable[[int], float]:
    """A function that runs n bare steps on one batch that stays on the device, and returns images/s."""
    config, mesh = benchmark_config(layers, batch_size, 1), parallel.data_mesh()
    model, schedule = make_model(config, 10), make_schedule(config)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.normal(size=(batch_size, 32, 32, 3)).astype(np.float32),
        "label": rng.integers(0, 10, batch_size).astype(np.int32),
    }
    on_device = parallel.to_global(batch, parallel.sharded_batch(mesh))
    step = jax.jit(lambda state, batch: train_step(config, model, schedule, state, batch), donate_argnums=0)
    state = init_state(config, model, (32, 32, 3), mesh)

    def run(num_steps: int) -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(num_steps):
            state, _ = step(state, on_device)
        jax.block_until_ready(state)
        return num_steps * batch_size / (time.perf_counter() - start)

    run(2)
    return run


def jax_trainer(layers: int, batch_size: int) -> Callable[[int], float]:
    """A function that runs the whole trainer, with its record, and returns the images/s it reports after warming up."""

    def run(num_steps: int) -> float:
        config = benchmark_config(layers, batch_size, num_steps)
        with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stderr(io.StringIO()):
            train(config, Path(workdir))
            records = read_metrics(Path(workdir) / "metrics.jsonl")
        return statistics.median(record["images_per_second"] for record in records[1:])

    return run


def torch_step(layers: int, batch_size: int) -> Callable[[int], float]:
    """A function that runs n steps of PyTorch on one batch and returns images/s."""
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = torch.device("cpu" if jax.default_backend() == "cpu" else "cuda")
    model = cifar_resnet(layers).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    images = torch.randn(batch_size, 3, 32, 32).to(device, memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch_size,)).to(device)

    def run(num_steps: int) -> float:
        start = time.perf_counter()
        for _ in range(num_steps):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return num_steps * batch_size / (time.perf_counter() - start)

    run(2)
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="steps a measurement")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if jax.default_backend() != "cpu" and not torch.cuda.is_available():
        parser.error(
            f"JAX uses {jax.default_backend()} and PyTorch only the CPU; set JAX_PLATFORMS=cpu to compare them"
        )
    sides = {
        "train step": jax_step(arguments.layers, arguments.batch_size),
        "whole trainer": jax_trainer(arguments.layers, arguments.batch_size),
        "PyTorch step": torch_step(arguments.layers, arguments.batch_size),
    }
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(arguments.rounds):
        for name, run in sides.items():
            speeds[name].append(run(arguments.steps))
        print(f"round {number + 1}: " + ", ".join(f"{name} {speeds[name][-1]:.0f}" for name in sides), flush=True)

    def ratio(name: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(speeds[name], speeds[other], strict=True))

    print(f"\nResNet-{arguments.layers}, batch {arguments.batch_size}, {jax.devices()[0].device_kind}, ", end="")
    print(f"{len(os.sched_getaffinity(0))} cores, jax {jax.__version__}, torch {torch.__version__}, ", end="")
    print(f"medians of {arguments.rounds}\n")
    print("| | images/s (min-max) | ratio to PyTorch | ratio to the bare step |\n|---|---|---|---|")
    for name, values in speeds.items():
        print(
            f"| {name} | {statistics.median(values):.0f} ({min(values):.0f}-{max(values):.0f}) "
            f"| {ratio(name, 'PyTorch step'):.2f} | {ratio(name, 'train step'):.2f} |"
        )
    print(json.dumps({"images_per_second": speeds, "trainer_share": ratio("whole trainer", "train step")}))


if __name__ == "__main__":
    main()
