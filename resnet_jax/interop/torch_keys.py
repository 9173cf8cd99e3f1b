"""Where this project's variables stand in a PyTorch state dict of torchvision's or timm's, and what does not fit.

A key follows from the names of the modules on the way to a variable, whatever network they are in, and from the family,
which says how stages and the ends are called. So a new network needs nothing here unless it has a new kind of module.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.models import Model, Variant
from resnet_jax.models.stacking import unstack_blocks
from resnet_jax.models.vgg import POOLED

Place: TypeAlias = tuple[str, ...]  # ("params", "stage2_block1", "conv1", "kernel")
Shape: TypeAlias = tuple[int, ...]

HEAD_KERNEL: Place = ("params", "head", "kernel")
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
# Of ResNets, as torchvision has them; the stem of three layers, the last two of the stem, SE and ECA as timm has.
_MODULES = {
    "stem_conv": "conv1",
    "stem_bn": "bn1",
    "stem_conv1": "conv1.0",
    "stem_bn1": "conv1.1",
    "stem_conv2": "conv1.3",
    "stem_bn2": "conv1.4",
    "stem_conv3": "conv1.6",
    "stem_pool_conv": "maxpool.0",
    "stem_pool_bn": "maxpool.1",
    "projection_conv": "downsample.0",
    "projection_bn": "downsample.1",
    "pooled_projection_conv": "downsample.1",  # What pools is counted.
    "pooled_projection_bn": "downsample.2",
    "attention": "se",
}
# Of networks of pre-activation blocks, as timm's resnetv2 has them.
_PREACTIVATION_MODULES = {
    "projection_conv": "downsample.conv",
    "pooled_projection_conv": "downsample.conv",
    "attention": "se",
    "last_bn": "norm",
    "head": "head.fc",
}
_VGG_CLASSIFIER = {"fc6": "classifier.0", "fc7": "classifier.3", "head": "classifier.6"}
_TIMM_VGG = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3", "head.fc": "classifier.6"}
HEADS = ("fc", "linear")  # What ResNets call their classifier.
_FILTER = np.outer([1, 2, 1], [1, 2, 1]) / 16  # Of ``pooling.BlurPool``.
# Problems of a kind in one message: weights of a wholly different network have hundreds, and a few then tell as much.
_LISTED, _FEW = 8, 3


def torch_keys(model: Model, head: str) -> Callable[[Place], str]:
    """Of a variable of the unrolled layout, its key. ``head`` is what a ResNet's classifier is called."""
    return lambda place: _family(model).key(place, model, head)


def stem_kernel(model: Model, places: Iterable[Place]) -> Place:
    """The kernel that reads the images, of the places of the model's variables."""
    places, stems = set(places), [("params", module, "kernel") for module in _family(model).stems]
    return next((stem for stem in stems if stem in places), stems[0])


def is_constant(key: str, array: np.ndarray) -> bool:
    """Whether it is the filter of an anti-aliased network, which some programs store and this one need not."""
    filters = array.reshape(-1, 3, 3) if array.shape[1:] == (1, 3, 3) else np.empty((0, 3, 3))
    return key.endswith(".filt") and len(filters) > 0 and np.allclose(filters, _FILTER)


def renamed(weights: Mapping[str, np.ndarray], network: Variant) -> dict[str, np.ndarray]:
    """The weights by the keys that ``torch_keys`` gives, where they have timm's and those are others."""
    others = _family(network).timm
    found = {}
    for key, array in weights.items():
        module, dot, leaf = key.rpartition(".")
        found[f"{others.get(module, module)}{dot}{leaf}"] = array
    return found


def heads(network: Model | Variant) -> tuple[str, ...]:
    """What the classifier may be called."""
    return _family(network).heads


def _family(model: Model | Variant) -> "_Family":
    if model.family not in _FAMILIES:
        raise UserError(
            f"no PyTorch keys are known for networks of the family {model.family!r}; "
            f"those of {' and '.join(map(repr, _FAMILIES))} have some"
        )
    return _FAMILIES[model.family]


def _resnet_key(place: Place, model: Model, head: str) -> str:
    """("params", "stage2_block1", "conv1", "kernel") -> "layer2.0.conv1.weight"."""
    _, *modules, leaf = place
    names = []
    for module in modules:
        if module.startswith("stage"):
            stage, block = module.removeprefix("stage").split("_block")
            names.append(f"layer{stage}.{int(block) - 1}")
        else:
            names.append(head if module == "head" else _MODULES.get(module, module))
    return ".".join([*names, _LEAVES.get(leaf, leaf)])


def _preactivation_key(place: Place, model: Model, head: str) -> str:
    """("params", "stage2_block1", "bn1", "scale") -> "stages.1.blocks.0.norm1.weight"."""
    _, *modules, leaf = place
    names = []
    for module in modules:
        if module.startswith("stage"):
            stage, block = module.removeprefix("stage").split("_block")
            names.append(f"stages.{int(stage) - 1}.blocks.{int(block) - 1}")
        else:
            module = _PREACTIVATION_MODULES.get(module, module)
            names.append(re.sub(r"^(stem_)?bn", r"\1norm", module).replace("stem_", "stem."))
    return ".".join([*names, _LEAVES.get(leaf, leaf)])


def _vgg_key(place: Place, model: Any, head: str) -> str:
    """("params", "conv2_1", "kernel") -> "features.5.weight": ReLUs and max-pools are counted there, too."""
    _, module, leaf = place
    match = re.fullmatch(r"conv(\d+)_(\d+)", module)
    if not match:
        return f"{_VGG_CLASSIFIER[module]}.{_LEAVES.get(leaf, leaf)}"
    stage, conv = int(match[1]), int(match[2])
    before = sum(2 * num_convs + 1 for num_convs in model.stage_sizes[: stage - 1])
    return f"features.{before + 2 * (conv - 1)}.{_LEAVES.get(leaf, leaf)}"


class _Family(NamedTuple):
    """How the networks of a family are keyed.

    heads: what the classifier may be called.
    stems: the modules of which a network has one, which reads the images.
    key: of a place.
    pointwise: fully-connected layers that are 1x1 convolutions in PyTorch.
    timm: modules that it calls otherwise, by its names.
    """

    heads: tuple[str, ...]
    stems: tuple[str, ...]
    key: Callable[[Place, Any, str], str]
    pointwise: tuple[str, ...] = ()
    timm: Mapping[str, str] = {}


_FAMILIES = {
    "resnet": _Family(HEADS, ("stem_conv", "stem_conv1"), _resnet_key, ("fc1", "fc2")),
    "preactivation": _Family(("head.fc",), ("stem_conv", "stem_conv1"), _preactivation_key, ("fc1", "fc2", "head")),
    "vgg": _Family(("classifier.6",), ("conv1_1",), _vgg_key, timm=_TIMM_VGG),
}


def to_flax_layout(array: np.ndarray, place: Place, model: Model) -> np.ndarray:
    """Convolutions from (O, I, h, w) to (h, w, I, O), those along channels likewise, fully-connected layers to (I, O).

    VGG's first one reads a map, of which PyTorch has the channels first and this project last; in timm it and the
    second are convolutions.
    """
    if place[-1] != "kernel":
        return array
    if place[-2] in _family(model).pointwise and array.shape[2:] == (1, 1):
        array = array[:, :, 0, 0]
    if place[-2] in ("fc6", "fc7") and array.ndim == 4:
        array = array.reshape(len(array), -1)
    if place[-2] == "fc6" and array.ndim == 2 and array.shape[1] % POOLED**2 == 0:
        maps = array.reshape(len(array), -1, POOLED, POOLED)
        return maps.transpose(2, 3, 1, 0).reshape(-1, len(array))
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.transpose()


def to_torch_layout(array: np.ndarray, place: Place, model: Model) -> np.ndarray:
    """The inverse of ``to_flax_layout``."""
    if place[-1] != "kernel":
        return array
    if place[-2] in _family(model).pointwise:
        return array.transpose()[:, :, None, None]
    if place[-2] == "fc6":
        maps = array.reshape(POOLED, POOLED, -1, array.shape[1])
        return maps.transpose(3, 2, 0, 1).reshape(array.shape[1], -1)
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.transpose()


def variable_shapes(model: Model, channels: int) -> dict[Place, Shape]:
    """The shape of each of the model's variables, in its own layout (scanned or not), for images of ``channels``."""
    # Tracing the scanned layout takes the same short time at any depth; the views take no memory.
    traced = model.scanned()
    template: Any = jax.eval_shape(lambda: traced.init(jax.random.key(0), jnp.zeros((1, 32, 32, channels))))
    views = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), template)
    layout = views if model == traced else unstack_blocks(views)
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
