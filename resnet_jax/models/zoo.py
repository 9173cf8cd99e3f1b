"""The networks of the paper, and those that it compares them with, by name.

A new network is a row of ``_variants``. Its fields are those of its model, and of its block where that has some of its
own; they are also what ``create_model`` may override.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from resnet_jax.errors import UserError
from resnet_jax.kernels import PLAIN, Kernels
from resnet_jax.models.blocks import BasicBlock, Block, BottleneckBlock
from resnet_jax.models.model import Model
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.shortcuts import SHORTCUTS
from resnet_jax.models.stems import STEMS
from resnet_jax.models.vgg import VGG


class Variant(NamedTuple):
    """A network that has a name.

    model: its class, a ``Model``.
    depth: its layers with weights, as the paper counts them: those on the longest path.
    fields: what defines it, as ``create_model`` takes it.
    """

    model: Any
    depth: int
    fields: Mapping[str, Any]

    @property
    def family(self) -> str:
        """ "resnet" or "vgg"."""
        return self.model.family

    @property
    def image_size(self) -> int:
        """Height and width of the images that it was made for."""
        return _make(self.model, self.fields).image_size

    @property
    def own_fields(self) -> list[str]:
        """The names of all fields that ``create_model`` may override."""
        return _fields_of(self.model, self.fields)


def list_models() -> list[str]:
    """The names that ``create_model`` takes."""
    return list(_variants())


def variant(name: str) -> Variant:
    """What is known of a name. Raises UserError for an unknown one, naming the nearest."""
    variants = _variants()
    if name not in variants:
        close = difflib.get_close_matches(name, variants, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(
            f"unknown model {name!r}; {hint}The models are {', '.join(variants)}; others through stage_sizes"
        )
    return variants[name]


def create_model(name: str, num_classes: int | None = None, *, kernels: Kernels = PLAIN, **overrides: Any) -> Model:
    """Makes the linen module of a network of the paper, a ``ResNet``, or of one that it compares with.

    Args:
        name: one of ``list_models()``: "resnet50", "resnet110", "plain34", "highway20", "vgg16" (a ``VGG``), ...
        num_classes: width of the classifier; default 1000 (ImageNet networks) or 10 (CIFAR networks). With 0 there is
            none, and the network gives the features that it would read.
        kernels: how the model computes; default JAX's own operations. ``kernels.fast_kernels`` are faster on CPUs.
        **overrides: any other field of ``ResNet`` or ``VGG``: ``width=32``, ``stage_sizes=(1, 1, 1)``, ... For parts of
            the paper their names will do: ``shortcut`` "A", "B", "C" (section 3.3), "none" (a plain network) or
            "gated" (a highway network), ``stem`` "imagenet" or "cifar", ``dtype`` "float32" or "bfloat16". Further
            ``bn_group_size`` (examples that share batch statistics in training; default the whole global batch),
            ``bn_momentum`` (of the running statistics; default 0.9) and, for bottlenecks, ``stride_placement``, "v1"
            (the paper's) or "v1.5".

    Raises UserError for an unknown name, field or value, naming the nearest valid one, and for a field that this
    network does not have.
    """
    found = variant(name)
    for field in overrides:
        if field not in found.own_fields:
            raise UserError(_unknown_field(field, name, found))
    given = overrides if num_classes is None else overrides | {"num_classes": num_classes}
    return _make(found.model, {**found.fields, **given}, kernels)


def _variants() -> dict[str, Variant]:
    variants = {}
    for layers, (stage_sizes, block) in _IMAGENET_STAGES.items():
        variants[f"resnet{layers}"] = _imagenet(layers, stage_sizes, block=block)
    for layers in _CIFAR_LAYERS:
        variants[f"resnet{layers}"] = _cifar(layers)
    for prefix, shortcut, depths in (("plain", "none", _PLAIN_LAYERS), ("highway", "gated", _HIGHWAY_LAYERS)):
        for layers in depths:
            residual = variants[f"resnet{layers}"]
            variants[f"{prefix}{layers}"] = residual._replace(fields={**residual.fields, "shortcut": shortcut})
    for layers, sizes in _VGG_STAGES.items():
        variants[f"vgg{layers}"] = Variant(VGG, layers, {"stage_sizes": sizes, "num_classes": 1000})
    return variants


# Table 1: layers -> (blocks per stage, block).
_IMAGENET_STAGES: dict[int, tuple[tuple[int, ...], type[Block]]] = {
    18: ((2, 2, 2, 2), BasicBlock),
    34: ((3, 4, 6, 3), BasicBlock),
    50: ((3, 4, 6, 3), BottleneckBlock),
    101: ((3, 4, 23, 3), BottleneckBlock),
    152: ((3, 8, 36, 3), BottleneckBlock),
}
# Section 4.2: 6n+2 layers.
_CIFAR_LAYERS = (20, 32, 44, 56, 110, 1202)
_PLAIN_LAYERS = (18, 34, 20, 32, 44, 56, 110)
_HIGHWAY_LAYERS = (20, 32, 56)
# Table 1 of VGG's own paper, D and E: layers -> convolutions per stage.
_VGG_STAGES = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def _imagenet(depth: int, stage_sizes: tuple[int, ...], **fields: Any) -> Variant:
    """A network of Table 1."""
    common = {"stage_sizes": stage_sizes, "num_classes": 1000, "width": 64, "stem": "imagenet", "shortcut": "B"}
    return Variant(ResNet, depth, {**common, **fields})


def _cifar(depth: int, **fields: Any) -> Variant:
    """A network of section 4.2."""
    common: dict[str, Any] = {"stage_sizes": ((depth - 2) // 6,) * 3, "num_classes": 10, "width": 16, "stem": "cifar"}
    # Compile time grows with the number of unrolled blocks (docs/performance.md).
    common |= {"shortcut": "A", "block": BasicBlock, "scan_blocks": depth >= 110}
    return Variant(ResNet, depth, {**common, **fields})


# Fields, and the parts that they belong to.

_NORM_FIELDS = {"bn_group_size": "group_size", "bn_momentum": "momentum"}


def _names(module: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(module) if field.name not in ("name", "parent", "kernels")]


def _fields_of(model: Any, fields: Mapping[str, Any]) -> list[str]:
    names = _names(model)
    if "norm" in names:
        names += _NORM_FIELDS
    return names + _fields_of_block(fields)


def _fields_of_block(fields: Mapping[str, Any]) -> list[str]:
    """Those that a block has beyond what all blocks have."""
    if "block" not in fields:
        return []
    block = fields["block"]
    block = block.func if isinstance(block, functools.partial) else block
    return [name for name in _names(block) if name not in _names(Block)]


def _make(model: Any, fields: Mapping[str, Any], kernels: Kernels = PLAIN) -> Any:
    """The model of checked fields, each given to the part that it belongs to."""
    checked = {field: _CHECKS[field](field, value) if field in _CHECKS else value for field, value in fields.items()}
    own = {field: value for field, value in checked.items() if field in _names(model)}
    of_block = {field: checked[field] for field in _fields_of_block(fields) if field in checked}
    if of_block:
        own["block"] = _partial(checked["block"], **of_block)
    of_norm = {_NORM_FIELDS[field]: value for field, value in checked.items() if field in _NORM_FIELDS}
    if of_norm:
        own["norm"] = _partial(checked.get("norm", model.norm), **of_norm)
    return model(**own, kernels=kernels)


@functools.cache
def _partial(part: Callable[..., Any], **fields: Any) -> Callable[..., Any]:
    """The same object for the same arguments, so that models of equal fields are equal."""
    return functools.partial(part, **fields)


def _unknown_field(field: str, name: str, found: Variant) -> str:
    known = ", ".join(found.own_fields)
    if any(field in other.own_fields for other in _variants().values()):
        return f"model field {field} is set, but {name} has no such field; remove it, its fields are {known}"
    close = difflib.get_close_matches(field, found.own_fields, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown model field {field!r}; {hint}The fields of {name} are {known}"


# Values.


def _one_of(choices: Mapping[str, Any]) -> Callable[[str, Any], Any]:
    """A part by its name, or another part of that kind."""

    def check(field: str, value: Any) -> Any:
        if value is None or isinstance(value, (str, bool, int, float)):
            if value not in choices:
                raise UserError(f"model field {field} is {value!r}; it must be {' or '.join(map(repr, choices))}")
            return choices[str(value)]
        return value

    return check


def _integer(least: int) -> Callable[[str, Any], int]:
    def check(field: str, value: Any) -> int:
        if type(value) is not int or value < least:
            kind = "a positive integer" if least else "an integer of at least 0"
            raise UserError(f"model field {field} is {value!r}; it must be {kind}")
        return value

    return check


def _fraction(field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise UserError(f"model field {field} is {value!r}; it must be a number from 0 to below 1")
    return value


def _boolean(field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"model field {field} is {value!r}; it must be True or False")
    return value


def _stage_sizes(field: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or not value or not all(type(n) is int and n > 0 for n in value):
        raise UserError(f"model field {field} is {value!r}; it must be a tuple of positive integers")
    return tuple(value)


def _compute_dtype(field: str, value: Any) -> Any:
    try:
        resolved = jnp.dtype(value)
    except TypeError:
        resolved = None
    if resolved not in (jnp.float32, jnp.bfloat16):
        raise UserError(f"model field {field} is {value!r}; it must be 'float32' or 'bfloat16'")
    return resolved


def _group_size(field: str, value: Any) -> int | None:
    return None if value is None else _integer(1)(field, value)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "stage_sizes": _stage_sizes,
    "num_classes": _integer(0),
    "width": _integer(1),
    "hidden": _integer(1),
    "stem": _one_of(STEMS),
    "shortcut": _one_of(SHORTCUTS),
    "stride_placement": _one_of({"v1": "v1", "v1.5": "v1.5"}),
    "dtype": _compute_dtype,
    "bn_group_size": _group_size,
    "bn_momentum": _fraction,
    "drop_path": _fraction,
    "zero_init_last_bn": _boolean,
    "remat": _boolean,
    "scan_blocks": _boolean,
}
