"""Backbones of detectors: what makes maps of images, and features of pooled regions, out of a classification network.

The classification network is a module inside, ``network``, under its own names: ``with_weights`` puts its variables in.
Batch normalisation is frozen by default: the running averages are used in training, too, and neither they nor scales
and biases change (appendix A).
"""

from collections.abc import Mapping
from typing import Any, Protocol

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from resnet_jax.errors import UserError
from resnet_jax.kernels import Kernels
from resnet_jax.models.layers import Conv, he_normal
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.stacking import stack_blocks, unstack_blocks
from resnet_jax.models.vgg import VGG

Variables = Mapping[str, Any]
Place = tuple[str, ...]


class Backbone(Protocol):
    """A linen module of normalised images (B, H, W, 3) to a tuple of maps (B, H / stride, W / stride, C).

    H and W are best multiples of the largest stride; maps of others are rounded up.
    """

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the maps, the finest first."""

    @property
    def roi_levels(self) -> int:
        """How many of them, from the first, regions are pooled from."""

    @property
    def freeze_norm(self) -> bool:
        """Whether batch normalisation keeps its statistics, scales and biases in training."""

    @property
    def dtype(self) -> Any: ...

    @property
    def kernels(self) -> Kernels: ...

    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, ...]: ...

    def head(self, pooled: jax.Array, train: bool = False) -> jax.Array:
        """Pooled regions (N, P, P, C) to features (N, D), float32."""

    def is_frozen(self, place: Place) -> bool:
        """Whether the parameter at this place in the backbone is never trained."""

    def of_head(self, place: Place) -> bool:
        """Whether the parameter at this place belongs to ``head``, and not to the maps."""


def _frozen_stages_of_resnet(place: Place, frozen_stages: int) -> bool:
    """Of a place in a ``ResNet``; the stem is the first stage."""
    name = place[0]
    return frozen_stages > (int(name.removeprefix("stage").split("_")[0]) if name.startswith("stage") else 0)


class ResNetC4(nn.Module):
    """The paper's: all stages but the last are shared and give one map; the last is applied to regions (appendix A).

    With an ImageNet network the map is conv4's, of stride 16, and the head is conv5, whose first convolution strides by
    2, and the mean over positions. Its parameters and those of the shared part together are the network's.

    network: a ``ResNet`` with num_classes=0.
    frozen_stages: how many parts are not trained at all: the stem, the first stage, ... (detectron2 freezes 2.)
    freeze_norm: freeze batch normalisation. Without, it uses and updates batch statistics in training, for networks
        that start from nothing; those of the head are over the pooled regions of all images.
    """

    network: ResNet
    frozen_stages: int = 2
    freeze_norm: bool = True

    @property
    def strides(self) -> tuple[int, ...]:
        return (self.network.strides[-2],)

    @property
    def roi_levels(self) -> int:
        return 1

    @property
    def dtype(self) -> Any:
        return self.network.dtype

    @property
    def kernels(self) -> Kernels:
        return self.network.kernels

    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, ...]:
        shared = len(self.network.stage_sizes) - 1
        outputs: Any = self.network(images, train and not self.freeze_norm, stages=(0, shared))
        return (outputs[f"C{shared + 1}"],)

    def head(self, pooled: jax.Array, train: bool = False) -> jax.Array:
        last = len(self.network.stage_sizes)
        outputs: Any = self.network(pooled, train and not self.freeze_norm, stages=(last, last))
        return jnp.mean(outputs[f"C{last + 1}"].astype(jnp.float32), axis=(1, 2))

    def whole(self, images: jax.Array, train: bool = False) -> jax.Array:
        """The network's features (B, D), float32, of normalised images, as for their classification."""
        features: Any = self.network(images, train and not self.freeze_norm)
        return features

    def is_frozen(self, place: Place) -> bool:
        return place[0] == "network" and _frozen_stages_of_resnet(place[1:], self.frozen_stages)

    def of_head(self, place: Place) -> bool:
        return place[0] == "network" and place[1].startswith(f"stage{len(self.network.stage_sizes)}_")


class FPN(nn.Module):
    """A feature pyramid over a ``ResNet`` (Lin et al., arXiv 1612.03144, section 3), with torchvision's last level.

    Each stage's output, "C2" and coarser, goes through a 1x1 convolution; the coarser level, enlarged twice by
    repeating cells, is added; and a 3x3 convolution makes the level. One more level is every second cell of the
    coarsest one; no region is pooled from it. All levels have the same channels.

    network: a ``ResNet`` with num_classes=0.
    channels: of the levels.
    hidden: units of both fully-connected layers of the head.
    frozen_stages, freeze_norm: as for ``ResNetC4``.
    """

    network: ResNet
    channels: int = 256
    hidden: int = 1024
    frozen_stages: int = 2
    freeze_norm: bool = True

    @property
    def strides(self) -> tuple[int, ...]:
        strides = self.network.strides[1:]
        return (*strides, 2 * strides[-1])

    @property
    def roi_levels(self) -> int:
        return len(self.network.stage_sizes)

    @property
    def dtype(self) -> Any:
        return self.network.dtype

    @property
    def kernels(self) -> Kernels:
        return self.network.kernels

    def setup(self) -> None:
        def conv(size: int) -> Conv:
            return Conv(
                self.channels, size, use_bias=True, dtype=self.dtype, kernel_init=_lecun_uniform, kernels=self.kernels
            )

        self.inner = [conv(1) for _ in range(self.roi_levels)]
        self.layer = [conv(3) for _ in range(self.roi_levels)]
        self.fc6 = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=he_normal)
        self.fc7 = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=he_normal)

    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, ...]:
        outputs: Any = self.network(images, train and not self.freeze_norm, features=True)
        levels: list[jax.Array] = []
        above: jax.Array | None = None
        for i in reversed(range(self.roi_levels)):
            x = self.inner[i](outputs[f"C{i + 2}"])
            above = x if above is None else x + _enlarged(above, x.shape[1:3])
            levels.insert(0, self.layer[i](above))
        return (*levels, levels[-1][:, ::2, ::2])

    def head(self, pooled: jax.Array, train: bool = False) -> jax.Array:
        x = pooled.reshape(len(pooled), -1)
        return nn.relu(self.fc7(nn.relu(self.fc6(x)))).astype(jnp.float32)

    def is_frozen(self, place: Place) -> bool:
        return place[0] == "network" and _frozen_stages_of_resnet(place[1:], self.frozen_stages)

    def of_head(self, place: Place) -> bool:
        return place[0] in ("fc6", "fc7")


_lecun_uniform = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


def _enlarged(x: jax.Array, hw: tuple[int, ...]) -> jax.Array:
    """Every cell twice in both directions, cut to ``hw``: the nearest cell, as maps are halved with rounding up."""
    n, height, width, channels = x.shape
    twice = jnp.broadcast_to(x[:, :, None, :, None], (n, height, 2, width, 2, channels))
    return twice.reshape(n, 2 * height, 2 * width, channels)[:, : hw[0], : hw[1]]


class VGGBackbone(nn.Module):
    """The baseline of Tables 7 and 8: the layers up to conv5_3, of stride 16, are shared; fc6 and fc7 are the head.

    network: a ``VGG`` with num_classes=0. Regions are pooled to 7 x 7.
    frozen_stages: how many stages are not trained at all; 2 in the released Faster R-CNN.
    """

    network: VGG
    frozen_stages: int = 2

    @property
    def freeze_norm(self) -> bool:
        """There is none."""
        return True

    @property
    def strides(self) -> tuple[int, ...]:
        return (self.network.strides[-1],)

    @property
    def roi_levels(self) -> int:
        return 1

    @property
    def dtype(self) -> Any:
        return self.network.dtype

    @property
    def kernels(self) -> Kernels:
        return self.network.kernels

    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, ...]:
        stages = len(self.network.stage_sizes)
        outputs: Any = self.network(images, train, stages=(1, stages))
        return (outputs[f"C{stages}"],)

    def head(self, pooled: jax.Array, train: bool = False) -> jax.Array:
        """With ``train`` half of the units are dropped, by an rng called "dropout"."""
        after = len(self.network.stage_sizes) + 1
        outputs: Any = self.network(pooled, train, stages=(after, after))
        return outputs["fc7"]

    def whole(self, images: jax.Array, train: bool = False) -> jax.Array:
        """The network's features (B, D), float32, of normalised images; with ``train`` as in ``head``."""
        features: Any = self.network(images, train)
        return features

    def is_frozen(self, place: Place) -> bool:
        name = place[1] if place[0] == "network" else ""
        return name.startswith("conv") and int(name.removeprefix("conv").split("_")[0]) <= self.frozen_stages

    def of_head(self, place: Place) -> bool:
        return place[0] == "network" and place[1] in ("fc6", "fc7")


def trainable(backbone: Backbone, variables: Variables) -> Any:
    """A tree like ``variables["params"]`` of bools: False for frozen stages and for frozen batch normalisation.

    For an optimizer, which must leave the others alone altogether: weight decay would change them, too. ``variables``
    are those of a module that has ``backbone`` under this name, or as "rpn_backbone" (``FasterRCNN``).
    """
    normalised = {place[:-1] for place in flax.traverse_util.flatten_dict(dict(variables.get("batch_stats", {})))}

    def of(place: Place) -> bool:
        frozen = place[0] in ("backbone", "rpn_backbone") and backbone.is_frozen(place[1:])
        return not (frozen or (backbone.freeze_norm and place[:-1] in normalised))

    places = flax.traverse_util.flatten_dict(dict(variables["params"]))
    return flax.traverse_util.unflatten_dict({place: of(place) for place in places})


def c4(network: Any, frozen_stages: int = 2, freeze_norm: bool = True) -> ResNetC4 | VGGBackbone:
    """The backbone of one map that a network with ``num_classes`` 0 makes; VGG has no batch normalisation to freeze."""
    if network.family == VGG.family:
        return VGGBackbone(network, frozen_stages)
    return ResNetC4(network, frozen_stages, freeze_norm)


def with_weights(variables: Variables, weights: Variables) -> dict[str, Any]:
    """A detector's variables with those of a classification network in its backbone.

    Args:
        variables: of a ``FasterRCNN``; or of a backbone alone.
        weights: {"params", "batch_stats"} of the network that ``create_model``, ``load_torch`` and ``load_run`` give,
            with any number of classes. The classifier, "head", is left aside.

    Raises UserError where a variable is missing, left over or of another shape, naming the first of them.
    """
    inside = ("backbone", "network") if "backbone" in variables["params"] else ("network",)

    def network_of(collection: Any) -> Any:
        for name in inside:
            collection = collection.get(name, {})
        return collection

    scanned = any(name.endswith("_blocks") for name in network_of(variables["params"]))
    weights = unstack_blocks({name: dict(collection) for name, collection in weights.items() if collection})
    if scanned:
        weights = stack_blocks(weights)
    result = dict(variables)
    for collection in ("params", "batch_stats"):
        given = {name: value for name, value in weights.get(collection, {}).items() if name != "head"}
        _check_fit(given, network_of(variables.get(collection, {})))
        if given:
            result[collection] = _replaced(variables[collection], inside, given)
    return result


def _replaced(tree: Any, path: Place, value: Any) -> dict[str, Any]:
    return {**tree, path[0]: _replaced(tree[path[0]], path[1:], value) if path[1:] else value}


def _check_fit(given: Any, expected: Any) -> None:
    shapes, wanted = (
        {"/".join(place): jnp.shape(leaf) for place, leaf in flax.traverse_util.flatten_dict(dict(tree)).items()}
        for tree in (given, expected)
    )
    for name in [*wanted, *shapes]:
        if shapes.get(name) != wanted.get(name):
            raise UserError(
                f"the weights do not fit the backbone: {name} is {shapes.get(name, 'missing')} where the backbone has "
                f"{wanted.get(name, 'no such variable')}; give those of the network that the backbone was made of"
            )
