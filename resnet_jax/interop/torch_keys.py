"""Where this project's variables stand in a PyTorch state dict with torchvision's keys, and what does not fit."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.models.resnet import ResNet
from resnet_jax.models.stacking import unstack_blocks

Place: TypeAlias = tuple[str, ...]  # ("params", "stage2_block1", "conv1", "kernel")
Shape: TypeAlias = tuple[int, ...]

HEAD_KERNEL: Place = ("params", "head", "kernel")
STEM_KERNEL: Place = ("params", "stem_conv", "kernel")
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_MODULES = {"stem_conv": "conv1", "stem_bn": "bn1", "projection_conv": "downsample.0", "projection_bn": "downsample.1"}
# Problems of a kind in one message: weights of a wholly different network have hundreds, and a few then tell as much.
_LISTED, _FEW = 8, 3


def torch_key(place: Place, head: str) -> str:
    """("params", "stage2_block1", "conv1", "kernel") -> "layer2.0.conv1.weight". ``head`` is the classifier's name."""
    _, *modules, leaf = place
    names = []
    for module in modules:
        if module.startswith("stage"):
            stage, block = module.removeprefix("stage").split("_block")
            names.append(f"layer{stage}.{int(block) - 1}")
        else:
            names.append(head if module == "head" else _MODULES.get(module, module))
    return ".".join([*names, _LEAVES[leaf]])


def to_flax_layout(array: np.ndarray, place: Place) -> np.ndarray:
    """Convolutions from (O, I, h, w) to (h, w, I, O), the classifier from (O, I) to (I, O)."""
    if place[-1] != "kernel":
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.transpose()


def to_torch_layout(array: np.ndarray, place: Place) -> np.ndarray:
    """The inverse of ``to_flax_layout``."""
    if place[-1] != "kernel":
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.transpose()


def variable_shapes(model: ResNet, channels: int) -> dict[Place, Shape]:
    """The shape of each of the model's variables, in its own layout (scanned or not), for images of ``channels``."""
    # Tracing the scanned layout takes the same short time at any depth; the views take no memory.
    scanned = model.clone(scan_blocks=True)
    template: Any = jax.eval_shape(lambda: scanned.init(jax.random.key(0), jnp.zeros((1, 32, 32, channels))))
    views = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), template)
    layout = views if model.scan_blocks else unstack_blocks(views)
    return {place: leaf.shape for place, leaf in flax.traverse_util.flatten_dict(layout).items()}


def misfits(given: Mapping[str, Shape], expected: Mapping[str, Shape], name: str) -> list[str]:
    """What is missing, of another shape or left over in ``given`` against what ``name`` has; nothing if all fits."""
    missing = [f"{key} is missing" for key in expected if key not in given]
    misshapen = [
        f"{key} gives shape {given[key]} where {name} has {shape}"
        for key, shape in expected.items()
        if key in given and given[key] != shape
    ]
    left_over = [f"{key} has no place in {name}" for key in given if key not in expected]
    problems = []
    for kind, others in ((missing, "are missing"), (misshapen, "have other shapes"), (left_over, "have no place")):
        if len(kind) > _LISTED:
            kind[_FEW:] = [f"... and {len(kind) - _FEW} more {others}"]
        problems += kind
    return problems
