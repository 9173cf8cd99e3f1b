"""The first steps of a residual network's training beside PyTorch's: the same start, images, order and augmentation.

    python -m benchmarks.dynamics --data_dir DIR --steps 200 --out docs/dynamics.svg
    python -m benchmarks.dynamics --data_dir DIR --steps 320 --network resnet56 --sides ours PyTorch --every 160

Our own training step gets the batches of configs/cifar10.py:NETWORK, and so does PyTorch: the images are augmented and
normalised by our transforms, once. PyTorch trains in float32 and in float64. How far these two drift apart is what
rounding does to this training, and ours should not drift further. Needs PyTorch.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file
from torch import nn
from tqdm import tqdm

from benchmarks.torch_resnet import cifar_resnet
from resnet_jax import build, parallel
from resnet_jax.config import Config, load_config, override
from resnet_jax.data.dataset import Dataset
from resnet_jax.data.feed import training_inputs
from resnet_jax.errors import UserError
from resnet_jax.interop.torch_weights import save_torch
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.state import init_state
from resnet_jax.train.step import prepare_key, train_step

_RECIPE = Path(__file__).resolve().parent.parent / "configs" / "cifar10.py"
PRECISIONS = {"PyTorch": torch.float32, "PyTorch, float64": torch.float64}
SIDES = ("ours", *PRECISIONS)


class Metrics(NamedTuple):
    """Of one training step: the mean cross-entropy, and the share of wrong predictions in %."""

    loss: float
    error: float


def training(
    config: Config, dataset: Dataset, steps: int, sides: Sequence[str] = SIDES
) -> Iterator[dict[str, Metrics]]:
    """Trains each of ``sides`` and yields their figures after each of the first ``steps`` steps.

    ``config`` is of a network of section 4.2 with option A's shortcuts, with SGD and a learning rate that does not
    change in these steps.
    """
    mesh = parallel.data_mesh()
    model = build.make_model(config, len(dataset.class_names), mesh)
    task = build.make_task(config, model, dataset, build.make_normalization(config, dataset), mesh)
    optimizer = build.make_optimizer(config, model)
    state = init_state(task, optimizer, config.seed, 0.0, 0.0, dataset.image_shape, mesh)
    take = {side: _torch_step(config, model, state.variables, PRECISIONS[side]) for side in sides if side in PRECISIONS}
    if "ours" in sides:
        take["ours"] = _our_step(config, dataset, task, optimizer, state)

    @jax.jit
    def prepare(step: Any, resident: Any, batch: Any) -> Any:
        first = jax.tree.map(lambda x: x[0], batch)
        return task.prepare(prepare_key(config.seed, step), dataset.gather(resident, first))

    resident, batches = training_inputs(dataset, config.seed, config.batch_size, 1, 0, steps, mesh)
    for step, batch in enumerate(batches):
        prepared = prepare(np.int32(step), resident, batch)
        yield {side: take[side](prepared) for side in sides}


def _our_step(config: Config, dataset: Dataset, task: Any, optimizer: Any, state: Any) -> Callable[[Any], Metrics]:
    intervals = build.intervals(config, dataset.num_train)
    settings = build.step_settings(config, intervals)._replace(log_every=1)
    schedule = build.make_schedule(config, intervals)
    compiled = jax.jit(lambda state, batch: train_step(task, optimizer, schedule, settings, state, batch))

    def take(batch: Any) -> Metrics:
        nonlocal state
        state, metrics = compiled(state, batch)
        return Metrics(float(metrics["train_loss"]), 100 * float(metrics["train_error"]))

    return take


def _torch_step(config: Config, model: Any, variables: Any, dtype: torch.dtype) -> Callable[[Any], Metrics]:
    """In parts of ``config.model.bn_group_size``, since PyTorch normalises by the statistics of what it gets."""
    network, settings = torch_twin(model, variables, dtype), config.optimizer
    assert isinstance(settings, SGD), settings
    sgd = torch.optim.SGD(
        network.parameters(), settings.learning_rate, settings.momentum, weight_decay=settings.weight_decay
    )

    def take(batch: Any) -> Metrics:
        images = torch.from_numpy(np.array(batch["image"])).permute(0, 3, 1, 2).to(dtype)
        labels = torch.from_numpy(np.array(batch["label"])).long()
        size = config.model.bn_group_size or len(images)
        loss, wrong = 0.0, 0
        sgd.zero_grad()
        for part, answers in zip(images.split(size), labels.split(size), strict=True):
            logits = network(part)
            share = F.cross_entropy(logits, answers, reduction="sum") / len(images)
            share.backward()
            loss += share.item()
            wrong += int((logits.argmax(1) != answers).sum())
        sgd.step()
        return Metrics(loss, 100 * wrong / len(images))

    return take


def torch_twin(model: Any, variables: Any, dtype: torch.dtype) -> nn.Module:
    """The PyTorch network of the same architecture, with the same parameters, in training."""
    network = cifar_resnet(model.stage_sizes, model.width)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "start.safetensors"
        save_torch(variables, path, model=model)
        state_dict = load_file(path)
    prefixes = ["conv1", "bn1"]
    for stage, blocks in enumerate(model.stage_sizes, start=1):
        for block in range(blocks):
            prefixes += [f"layer{stage}.{block}.{layer}" for layer in ("conv1", "bn1", "conv2", "bn2")]
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    for layer, prefix in zip(layers, [*prefixes, "fc"], strict=True):
        own = {key.rpartition(".")[2]: torch.from_numpy(value) for key, value in state_dict.items() if
               key.rpartition(".")[0] == prefix}  # fmt: skip
        layer.load_state_dict(own)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # The faster order on CPUs.
    return network.to(dtype).train()


def summary(losses: dict[str, np.ndarray]) -> dict[str, float]:
    """Means of the losses, and how far they are apart: the largest difference in the first 10 steps, and the mean."""
    figures = {f"{side}, mean loss": float(values.mean()) for side, values in losses.items()}
    for name, other in (("ours and PyTorch", "ours"), ("PyTorch in float64 and float32", "PyTorch, float64")):
        if {other, "PyTorch"} <= losses.keys():
            apart = np.abs(losses[other] - losses["PyTorch"])
            figures |= {f"{name}, first 10": float(apart[:10].max()), f"{name}, mean": float(apart.mean())}
    return figures


def draw(path: Path, losses: dict[str, np.ndarray]) -> None:
    """The losses, and how far they are from those of PyTorch in float32, by step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = np.arange(1, len(losses["ours"]) + 1)
    for (name, values), style in zip(losses.items(), ("-", "--", ":"), strict=False):
        left.plot(steps, values, style, label=name, linewidth=1.4)
    left.set(xlabel="step", ylabel="training loss")
    for name in (name for name in losses if name != "PyTorch"):
        right.semilogy(steps, np.abs(losses[name] - losses["PyTorch"]), label=name, linewidth=1.2)
    right.set(xlabel="step", ylabel="difference from PyTorch's loss")
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.grid(alpha=0.25)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", help="of TensorFlow Datasets; default as for train.py")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--network", default="resnet20", choices=["resnet20", "resnet32", "resnet44", "resnet56"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES, help="float64 takes most of the time")
    parser.add_argument("--every", type=int, default=20, help="steps from one printed row to the next")
    parser.add_argument("--out", type=Path, help="an .svg or .png file, of all sides")
    arguments = parser.parse_args()
    if min(arguments.steps, arguments.every) < 1:
        parser.error("--steps and --every must be at least 1")
    if arguments.out and set(arguments.sides) != set(SIDES):
        parser.error("--out draws all sides; leave --sides out")
    config = override(
        load_config(f"{_RECIPE}:{arguments.network}"), {"data_dir": arguments.data_dir, "seed": arguments.seed}
    )
    found: dict[str, list[Metrics]] = {side: [] for side in arguments.sides}
    rows = sorted({1, 2, 10, *range(arguments.every, arguments.steps, arguments.every), arguments.steps})
    try:
        steps = training(config, build.make_dataset(config), arguments.steps, arguments.sides)
        print("Mean loss and error in % of the steps since the row before.\n step" + "".join(f"{s:>24}" for s in found))
        for step, batch in enumerate(tqdm(steps, "training", arguments.steps, unit="step", delay=1), start=1):
            for side in found:
                found[side].append(batch[side])
            if step in rows:
                since = rows[rows.index(step) - 1] if step > 1 else 0
                means = [np.mean(values[since:], axis=0) for values in found.values()]
                tqdm.write(f"{step:5}" + "".join(f"{loss:16.6f}{error:8.2f}" for loss, error in means))
    except UserError as error:
        parser.error(str(error))
    losses = {side: np.array([batch.loss for batch in batches]) for side, batches in found.items()}
    print(json.dumps(summary(losses)))
    if arguments.out:
        draw(arguments.out, losses)


if __name__ == "__main__":
    main()
