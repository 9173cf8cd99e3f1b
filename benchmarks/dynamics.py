"""The first steps of a residual network's training beside PyTorch's: the same start, images, order and augmentation.

    python -m benchmarks.dynamics --data_dir DIR --steps 200 --out docs/dynamics.svg
    python -m benchmarks.dynamics --data_dir DIR --steps 160 --network resnet56 --without_float64

Our own training step gets the batches of configs/cifar10.py:NETWORK, and so does PyTorch: the images are augmented and
normalised by our transforms, once. PyTorch trains in float32 and in float64. How far these two drift apart is what
rounding does to this training, and ours should not drift further. Needs PyTorch.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def losses(
    config: Config, dataset: Dataset, steps: int, precisions: Mapping[str, torch.dtype] = PRECISIONS
) -> dict[str, np.ndarray]:
    """The loss of each of the first ``steps`` steps, (steps,), of "ours" and each of ``precisions``.

    ``config`` is of a network of section 4.2 with option A's shortcuts and batch statistics over the whole batch, with
    SGD and a learning rate that does not change in these steps.
    """
    mesh = parallel.data_mesh()
    model = build.make_model(config, len(dataset.class_names), mesh)
    task = build.make_task(config, model, dataset, build.make_normalization(config, dataset), mesh)
    intervals = build.intervals(config, dataset.num_train)
    optimizer, schedule = build.make_optimizer(config, model), build.make_schedule(config, intervals)
    settings = build.step_settings(config, intervals)._replace(log_every=1)
    state = init_state(task, optimizer, config.seed, 0.0, 0.0, dataset.image_shape, mesh)
    networks = {name: torch_twin(model, state.variables, dtype) for name, dtype in precisions.items()}
    sgd, rate = config.optimizer, float(schedule(jax.numpy.int32(0)))
    assert isinstance(sgd, SGD), sgd
    optimizers = {
        name: torch.optim.SGD(network.parameters(), rate, sgd.momentum, weight_decay=sgd.weight_decay)
        for name, network in networks.items()
    }

    @jax.jit
    def prepare(step: Any, resident: Any, batch: Any) -> Any:
        first = jax.tree.map(lambda x: x[0], batch)
        return task.prepare(prepare_key(config.seed, step), dataset.gather(resident, first))

    take = jax.jit(lambda state, batch: train_step(task, optimizer, schedule, settings, state, batch))
    found: dict[str, list[float]] = {"ours": [], **{name: [] for name in networks}}
    resident, batches = training_inputs(dataset, config.seed, config.batch_size, 1, 0, steps, mesh)
    for batch in tqdm(batches, "training", steps, unit="step", delay=1):
        prepared = prepare(state.step, resident, batch)
        state, metrics = take(state, prepared)
        found["ours"].append(float(metrics["train_loss"]))
        images = torch.from_numpy(np.array(prepared["image"])).permute(0, 3, 1, 2).contiguous()
        labels = torch.from_numpy(np.array(prepared["label"])).long()
        for name, network in networks.items():
            loss = F.cross_entropy(network(images.to(precisions[name])), labels)
            optimizers[name].zero_grad()
            loss.backward()
            optimizers[name].step()
            found[name].append(loss.item())
    return {name: np.array(values) for name, values in found.items()}


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
    return network.to(dtype).train()


def summary(found: dict[str, np.ndarray]) -> dict[str, float]:
    """Means of the losses, and how far they are apart: the largest difference in the first 10 steps, and the mean."""
    figures = {f"{name}, mean loss": float(values.mean()) for name, values in found.items()}
    for name, other in (("ours and PyTorch", "ours"), ("PyTorch in float64 and float32", "PyTorch, float64")):
        if other not in found:
            continue
        apart = np.abs(found[other] - found["PyTorch"])
        figures |= {f"{name}, first 10": float(apart[:10].max()), f"{name}, mean": float(apart.mean())}
    return figures


def draw(path: Path, found: dict[str, np.ndarray]) -> None:
    """The losses, and how far they are from those of PyTorch in float32, by step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = np.arange(1, len(found["ours"]) + 1)
    for (name, values), style in zip(found.items(), ("-", "--", ":"), strict=False):
        left.plot(steps, values, style, label=name, linewidth=1.4)
    left.set(xlabel="step", ylabel="training loss")
    for name in (name for name in found if name != "PyTorch"):
        right.semilogy(steps, np.abs(found[name] - found["PyTorch"]), label=name, linewidth=1.2)
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
    parser.add_argument("--without_float64", action="store_true", help="several times as fast")
    parser.add_argument("--out", type=Path, help="an .svg or .png file")
    arguments = parser.parse_args()
    # The recipe's batch statistics are those of each half of a batch, as on two GPUs; PyTorch's are of all of it.
    changes = {"data_dir": arguments.data_dir, "model.bn_group_size": None}
    config = override(load_config(f"{_RECIPE}:{arguments.network}"), changes)
    try:
        precisions = {"PyTorch": torch.float32} if arguments.without_float64 else PRECISIONS
        found = losses(config, build.make_dataset(config), arguments.steps, precisions)
    except UserError as error:
        parser.error(str(error))
    print("step  " + "  ".join(f"{name:>16}" for name in found))
    for step in sorted({0, 1, 9, *range(19, arguments.steps, 20), arguments.steps - 1}):
        print(f"{step + 1:4}  " + "  ".join(f"{values[step]:16.6f}" for values in found.values()))
    print(json.dumps(summary(found)))
    if arguments.out:
        draw(arguments.out, found)


if __name__ == "__main__":
    main()
