"""Backbones of detectors: what makes maps of images, and features of pooled regions, out of a classification network.

The classification network is a module inside, ``network``, under its own names: ``with_weights`` puts its variables in.
What of it is not trained it says itself: ``FPN(network.frozen(("stem", "stage1"), norms=True))``. Frozen batch
normalisation uses the running averages in training, too, and neither they nor scales and biases change (appendix A).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol, TypeVar

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.detection.checks import check_backbone
from resnet_jax.errors import UserError
from resnet_jax.kernels import Kernels
from resnet_jax.models.layers import Conv, he_normal
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.stacking import stack_blocks, unstack_blocks
from resnet_jax.models.vgg import VGG

Variables = Mapping[str, Any]
Place = tuple[str, ...]
M = TypeVar("M", bound=nn.Module)

_BACKBONES = ("backbone", "rpn_backbone")


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
    def network(self) -> Any:
        """The classification network, with num_classes=0."""

    @property
    def dtype(self) -> Any: ...

    @property
    def kernels(self) -> Kernels: ...

    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, ...]: ...

    def head(self, pooled: jax.Array, train: bool = False) -> jax.Array:
        """Pooled regions (N, P, P, C) to features (N, D), float32."""

    def of_head(self, place: Place) -> bool:
        """Whether the parameter at this place belongs to ``head``, and not to the maps."""


class ResNetC4(nn.Module):
    """The paper's: all stages but the last are shared and give one map; the last is applied to regions (appendix A).

    With an ImageNet network the map is conv4's, of stride 16, and the head is conv5, whose first convolution strides by
    2, and the mean over positions. Its parameters and those of the shared part together are the network's.

    network: a ``ResNet`` with num_classes=0. Batch statistics of the head, where it is trained, are over the pooled
        regions of all images.
    """

    network: ResNet

    def setup(self) -> None:
        check_backbone(self.network, ResNet.family)

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
        outputs: Any = self.network(images, train, stages=(0, shared))
        return (outputs[f"C{shared + 1}"],)

    def head(self, pooled: jax.Array, train: bool = False) -> jax.Array:
        last = len(self.network.stage_sizes)
        outputs: Any = self.network(pooled, train, stages=(last, last))
        return jnp.mean(outputs[f"C{last + 1}"].astype(jnp.float32), axis=(1, 2))

    def whole(self, images: jax.Array, train: bool = False) -> jax.Array:
        """The network's features (B, D), float32, of normalised images, as for their classification."""
        features: Any = self.network(images, train)
        return features

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
    """

    network: ResNet
    channels: int = 256
    hidden: int = 1024

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
        check_backbone(self.network, ResNet.family)

        def conv(size: int) -> Conv:
            return Conv(
                self.channels, size, use_bias=True, dtype=self.dtype, kernel_init=_lecun_uniform, kernels=self.kernels
            )

        self.inner = [conv(1) for _ in range(self.roi_levels)]
        self.layer = [conv(3) for _ in range(self.roi_levels)]
        self.fc6 = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=he_normal)
        self.fc7 = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=he_normal)

    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, ...]:
        outputs: Any = self.network(images, train, features=True)
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
    """

    network: VGG

    def setup(self) -> None:
        check_backbone(self.network, VGG.family)

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

    def of_head(self, place: Place) -> bool:
        return place[0] == "network" and place[1] in ("fc6", "fc7")


def trainable(backbone: Backbone, variables: Variables) -> Any:
    """A tree like ``variables["params"]`` of bools: False for what is frozen of the backbone's ``network``.

    For an optimizer, which must leave the others alone altogether: weight decay would change them, too. ``variables``
    are those of a module that has ``backbone`` under this name, or as "rpn_backbone" (``FasterRCNN``).
    """
    network = backbone.network
    normalised = {place[:-1] for place in flax.traverse_util.flatten_dict(dict(variables.get("batch_stats", {})))}

    def of(place: Place) -> bool:
        if place[0] not in _BACKBONES or place[1] != "network":
            return True
        kept = place[:-1] in normalised and network.keeps_statistics(place[2])
        return not (kept or network.stage_of(place[2]) in network.frozen_stages)

    places = flax.traverse_util.flatten_dict(dict(variables["params"]))
    return flax.traverse_util.unflatten_dict({place: of(place) for place in places})


def networks(model: Any) -> dict[Place, Any]:
    """The classification networks in a ``FasterRCNN`` or ``Localiser``, by the places of their variables."""
    return {(name, "network"): backbone.network for name, backbone in _backbones(model).items()}


def frozen(model: M, stages: tuple[str, ...], norms: bool) -> M:
    """A ``FasterRCNN`` or ``Localiser`` whose networks are ``frozen``; see ``models.model.Model``."""

    def of(backbone: Any) -> Any:
        return backbone.clone(network=backbone.network.frozen(stages, norms))

    return model.clone(**{name: of(backbone) for name, backbone in _backbones(model).items()})


def forgetful(model: M) -> M:
    """A ``FasterRCNN`` or ``Localiser`` whose networks' running statistics become those of each batch, all of it."""

    def of(backbone: Any) -> Any:
        norm = partial(backbone.network.norm, momentum=0.0, group_size=None)
        return backbone.clone(network=backbone.network.clone(norm=norm))

    return model.clone(**{name: of(backbone) for name, backbone in _backbones(model).items()})


def freezes(model: Any) -> bool:
    """Whether anything of its networks is frozen."""
    return any(
        network.frozen_stages or (network.has_batch_norm and network.frozen_norms)
        for network in networks(model).values()
    )


def _backbones(model: Any) -> dict[str, Any]:
    return {name: getattr(model, name) for name in _BACKBONES if getattr(model, name) is not None}


def c4(network: Any) -> ResNetC4 | VGGBackbone:
    """The backbone of one map that a network with ``num_classes`` 0 makes. Raises UserError for other families."""
    if network.family not in (VGG.family, ResNet.family):
        raise UserError(
            f"detectors need a network of the family {ResNet.family!r} or {VGG.family!r}, not of {network.family!r}; "
            f"use one of those"
        )
    return VGGBackbone(network) if network.family == VGG.family else ResNetC4(network)


def with_weights(variables: Variables, weights: Variables) -> dict[str, Any]:
    """A detector's variables with those of a classification network in its backbones.

    Args:
        variables: of a ``FasterRCNN`` or ``Localiser``, in both backbones of which they are put where it has two; or of
            a backbone alone. Shapes do, too.
        weights: {"params", "batch_stats"} of the network that ``create_model``, ``load_torch`` and ``load_run`` give,
            with any number of classes. The classifier, "head", is left aside.

    Raises UserError where a variable is missing, left over or of another shape, naming the first of them.
    """
    result = dict(variables)
    names = [name for name in _BACKBONES if name in variables["params"]]
    paths: list[Place] = [(name, "network") for name in names]
    for path in paths or [("network",)]:
        own = {collection: _at(variables.get(collection, {}), path) for collection in ("params", "batch_stats")}
        network = unstack_blocks({name: dict(collection) for name, collection in weights.items() if collection})
        if any(name.endswith("_blocks") for name in own["params"]):
            network = stack_blocks(network)
        for collection, expected in own.items():
            given = {name: value for name, value in network.get(collection, {}).items() if name != "head"}
            if path[0] == "rpn_backbone":  # Without the stages that are applied to regions, of which it has no layer.
                stages = {name.split("_")[0] for name in expected}
                given = {name: value for name, value in given.items() if name.split("_")[0] in stages}
            _check_fit(given, expected)
            if given:
                result[collection] = _replaced(result[collection], path, given)
    return result


def _at(tree: Any, path: Place) -> Any:
    for name in path:
        tree = tree.get(name, {})
    return tree


def _replaced(tree: Any, path: Place, value: Any) -> dict[str, Any]:
    return {**tree, path[0]: _replaced(tree[path[0]], path[1:], value) if path[1:] else value}


def _check_fit(given: Any, expected: Any) -> None:
    shapes, wanted = (
        {"/".join(place): np.shape(leaf) for place, leaf in flax.traverse_util.flatten_dict(dict(tree)).items()}
        for tree in (given, expected)
    )
    for name in [*wanted, *shapes]:
        if shapes.get(name) != wanted.get(name):
            raise UserError(
                f"the weights do not fit the backbone: {name} is {shapes.get(name, 'missing')} where the backbone has "
                f"{wanted.get(name, 'no such variable')}; give those of the network that the backbone was made of"
            )
