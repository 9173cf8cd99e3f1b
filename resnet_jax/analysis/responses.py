"""Layer responses (Figure 7): how strongly each 3x3 layer answers, after its batch normalisation."""

import csv
import io
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
from resnet_jax.data.dataset import Dataset
from resnet_jax.data.feed import evaluation_inputs
from resnet_jax.data.normalization import Normalization
from resnet_jax.errors import UserError
from resnet_jax.files import replace_atomically
from resnet_jax.models import Model
from resnet_jax.models.stacking import unstack_blocks


def layer_responses(
    model: Model,
    variables: Any,
    normalize: Normalization,
    dataset: Dataset,
    split: str,
    mesh: Mesh,
    batch_size: int,
) -> dict[str, float]:
    """Standard deviation of the response of each 3x3 layer, over all positions, channels and examples of a split.

    The responses are the outputs of the layers' batch normalisations, before the ReLU or the addition (Figure 7), on
    the single view. The layers are in the order of the network: "stem" (CIFAR networks), "stage1_block1/conv1", ...;
    in bottlenecks "conv2" alone is 3x3. Running statistics normalise, as in any evaluation.

    Raises UserError for a network without batch normalisation, or a split that does not exist.
    """
    layers = model.response_layers()
    if not layers:
        raise UserError("layer responses are outputs of batch normalisations of 3x3 layers; this network has none")
    model, variables = model.unrolled(), unstack_blocks(variables)
    resident = parallel.to_global(dataset.resident(split), parallel.replicated(mesh))

    def moments(variables: Any, resident: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Labels (B,), and of each layer (B, 2): mean and mean square of each example's response."""
        batch = dataset.gather(resident, batch)
        capture = lambda module, _: module.path in layers  # noqa: E731
        _, kept = model.apply(
            variables,
            normalize(batch["image"]),
            train=False,
            capture_intermediates=capture,
            mutable=["intermediates"],
        )
        outputs = {layers[path[:-1]]: values[0] for path, values in flatten_dict(kept["intermediates"]).items()}
        found = {
            layer: jnp.stack([jnp.mean(x, axis=(1, 2, 3)), jnp.mean(x**2, axis=(1, 2, 3))], axis=1)
            for layer, x in ((layer, x.astype(jnp.float32)) for layer, x in outputs.items())
        }
        return batch["label"], found

    compiled = jax.jit(moments, out_shardings=parallel.replicated(mesh))
    parts: dict[str, list[np.ndarray]] = {}
    batches = evaluation_inputs(dataset, split, dataset.single_view(split), batch_size, mesh)
    hidden = None if parallel.is_main_process() else True  # None: only where stderr is a terminal.
    for batch in tqdm(batches, desc="layer responses", unit=" batches", delay=1, leave=False, disable=hidden):
        labels, found = jax.device_get(compiled(variables, resident, batch))
        for layer, values in found.items():
            parts.setdefault(layer, []).append(values[labels >= 0])
    result = {}
    for layer in layers.values():
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
