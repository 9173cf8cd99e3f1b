"""Layer responses (Figure 7): how strongly each 3x3 layer answers, after its batch normalisation."""

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from tqdm import tqdm

from resnet_jax import parallel
from resnet_jax.data.dataset import Data
from resnet_jax.data.feed import evaluation_inputs
from resnet_jax.data.resident import Dataset, gather
from resnet_jax.errors import UserError
from resnet_jax.evaluation.networks import Network
from resnet_jax.evaluation.protocols import views
from resnet_jax.files import replace_atomically
from resnet_jax.models.norm import BatchNorm
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.stacking import unstack_blocks


def layer_responses(network: Network, data: Data, split: str, mesh: Mesh) -> dict[str, float]:
    """Standard deviation of the response of each 3x3 layer, over all positions, channels and examples of a split.

    The responses are the outputs of the layers' batch normalisations, before the ReLU or the addition (Figure 7), on
    the single view. The layers are in the order of the network: "stem" (CIFAR networks), "stage1_block1/conv1", ...;
    in bottlenecks "conv2" alone is 3x3. Running statistics normalise, as in any evaluation.

    Raises UserError for a network without batch normalisation, or a split that there is not.
    """
    if not isinstance(network.model, ResNet):
        raise UserError("layer responses are those of residual and plain networks; this one has no batch normalisation")
    model = network.model.clone(scan_blocks=False)
    variables = unstack_blocks(network.variables) if network.model.scan_blocks else network.variables
    config = network.config
    resident = parallel.to_global(data.split(split), parallel.replicated(mesh)) if isinstance(data, Dataset) else None

    def moments(variables: Any, resident: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Labels (B,), and of each layer (B, 2): mean and mean square of each example's response."""
        if resident is not None:
            batch = batch | gather(resident, batch["index"])
        images = network.normalize(batch["image"])
        capture = lambda module, _: isinstance(module, BatchNorm)  # noqa: E731
        _, kept = model.apply(variables, images, train=False, capture_intermediates=capture, mutable=["intermediates"])
        outputs = {_layer(path[:-1], model): values[0] for path, values in flatten_dict(kept["intermediates"]).items()}
        found = {
            layer: jnp.stack([jnp.mean(x, axis=(1, 2, 3)), jnp.mean(x**2, axis=(1, 2, 3))], axis=1)
            for layer, x in ((layer, x.astype(jnp.float32)) for layer, x in outputs.items() if layer)
        }
        return batch["label"], found

    compiled = jax.jit(moments, out_shardings=parallel.replicated(mesh))
    ((view, batch_size),) = views("single", config, data, split)[0]
    parts: dict[str, list[np.ndarray]] = {}
    batches = evaluation_inputs(config, data, split, view, batch_size, mesh)
    for batch in tqdm(batches, desc="layer responses", unit=" batches", delay=1, leave=False):
        labels, found = jax.device_get(compiled(variables, resident, batch))
        for layer, values in found.items():
            parts.setdefault(layer, []).append(values[labels >= 0])
    result = {}
    for layer in sorted(parts, key=_position):
        mean, square = np.concatenate(parts[layer]).mean(axis=0, dtype=np.float64)
        result[layer] = float(np.sqrt(max(square - mean**2, 0.0)))
    return result


def write_responses(path: Path, responses: Mapping[str, float]) -> None:
    """Writes a CSV file, a line a layer in the order of the network: its number, name, deviation, and rank by that."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["position", "layer", "std", "rank"])
    ranks = {layer: rank for rank, layer in enumerate(sorted(responses, key=lambda name: -responses[name]), start=1)}
    for position, (layer, deviation) in enumerate(responses.items(), start=1):
        writer.writerow([position, layer, f"{deviation:.6g}", ranks[layer]])
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(path) as file:
        file.write(text.getvalue().encode())


def plot_responses(picture: Path, networks: Mapping[str, Mapping[str, float]], title: str = "") -> None:
    """Draws Figure 7 as a PNG: the deviations of each network in the order of layers, and sorted by size."""
    from matplotlib.figure import Figure  # Slow to import.

    figure = Figure(figsize=(7, 6), layout="constrained")
    figure.suptitle(title)
    in_order, by_size = figure.subplots(2)
    for label, responses in networks.items():
        style: dict[str, Any] = {"label": label, "linewidth": 1.2, "linestyle": "--" if "plain" in label else "-"}
        places = range(1, len(responses) + 1)
        in_order.plot(places, list(responses.values()), **style)
        by_size.plot(places, sorted(responses.values(), reverse=True), **style)
    in_order.set(xlabel="layer index (original)", ylabel="std")
    by_size.set(xlabel="layer index (sorted by magnitude)", ylabel="std")
    for axes in (in_order, by_size):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    in_order.legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)


def _layer(path: tuple[str, ...], model: ResNet) -> str | None:
    """("stage1_block2", "bn1") -> "stage1_block2/conv1"; None for what no 3x3 convolution comes before."""
    *blocks, norm = path
    if norm == "stem_bn":
        return "stem" if model.stem == "cifar" else None  # ImageNet's is 7x7.
    of_3x3 = ("bn2",) if model.bottleneck else ("bn1", "bn2")
    return f"{blocks[0]}/{norm.replace('bn', 'conv')}" if norm in of_3x3 else None


def _position(layer: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", layer)))
