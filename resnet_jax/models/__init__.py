"""The networks of the paper, and those that it compares them with, by name."""

import difflib
from typing import Any, TypeAlias

import jax.numpy as jnp

from resnet_jax.errors import UserError
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.vgg import VGG

Model: TypeAlias = ResNet | VGG

# Table 1: layers -> (blocks per stage, bottleneck).
_IMAGENET_STAGES = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
# Section 4.2: 6n+2 layers.
_CIFAR_LAYERS = (20, 32, 44, 56, 110, 1202)
_PLAIN_LAYERS = (18, 34, 20, 32, 44, 56, 110)
_HIGHWAY_LAYERS = (20, 32, 56)
# Table 1 of VGG's own paper, D and E: layers -> convolutions per stage.
_VGG_STAGES = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}

_CHOICES: dict[str, tuple] = {
    "stem": ("imagenet", "cifar"),
    "shortcut": ("A", "B", "C", "gated", None),
    "stride_placement": ("v1", "v1.5"),
}


def _variants() -> dict[str, dict[str, Any]]:
    """Model name -> the fields of ``ResNet``, or of ``VGG``, that define it."""
    residual: dict[int, dict[str, Any]] = {}
    for layers, (stage_sizes, bottleneck) in _IMAGENET_STAGES.items():
        residual[layers] = {"stage_sizes": stage_sizes, "bottleneck": bottleneck, "num_classes": 1000}
    for layers in _CIFAR_LAYERS:
        n = (layers - 2) // 6
        residual[layers] = {"stage_sizes": (n, n, n), "width": 16, "stem": "cifar", "shortcut": "A", "num_classes": 10}
    # Compile time grows with the number of unrolled blocks (docs/performance.md).
    for layers in (110, 1202):
        residual[layers]["scan_blocks"] = True
    variants = {f"resnet{layers}": fields for layers, fields in residual.items()}
    variants |= {f"plain{layers}": {**residual[layers], "shortcut": None} for layers in _PLAIN_LAYERS}
    variants |= {f"highway{layers}": {**residual[layers], "shortcut": "gated"} for layers in _HIGHWAY_LAYERS}
    variants |= {f"vgg{layers}": {"stage_sizes": sizes, "num_classes": 1000} for layers, sizes in _VGG_STAGES.items()}
    return variants


def list_models() -> list[str]:
    """The names that ``create_model`` takes."""
    return list(_variants())


def create_model(name: str, num_classes: int | None = None, **overrides: Any) -> Model:
    """Makes the linen module of a network of the paper, a ``ResNet``, or of one that it compares with.

    Args:
        name: one of ``list_models()``: "resnet50", "resnet110", "plain34", "highway20", "vgg16" (a ``VGG``), ...
        num_classes: width of the classifier; default 1000 (ImageNet networks) or 10 (CIFAR networks).
        **overrides: any other field of ``ResNet`` or ``VGG``, e.g. ``shortcut="B"``, ``stride_placement="v1.5"``,
            ``dtype="bfloat16"``, ``bn_group_size=32``, ``stem="cifar"``, ``width=32``, ``stage_sizes=(1, 1, 1)``.

    Raises UserError for an unknown name, field or value, naming the nearest valid one.
    """
    variants = _variants()
    if name not in variants:
        close = difflib.get_close_matches(name, variants, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(
            f"unknown model {name!r}; {hint}The models are {', '.join(variants)}; others through stage_sizes"
        )
    fields = variants[name] | overrides
    if num_classes is not None:
        fields["num_classes"] = num_classes
    module: Any = VGG if name.startswith("vgg") else ResNet
    known = [field for field in module.__dataclass_fields__ if field not in ("name", "parent")]
    for field in overrides:
        if field not in known:
            raise UserError(f"unknown model field {field!r}; the fields are {', '.join(known)}")
    for field, choices in _CHOICES.items():
        if field in overrides and overrides[field] not in choices:
            names = " or ".join("None (no shortcut)" if choice is None else repr(choice) for choice in choices)
            raise UserError(f"model field {field} is {overrides[field]!r}; it must be {names}")
    for field in ("num_classes", "width", "hidden", "bn_group_size"):
        value = fields.get(field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"model field {field} is {value!r}; it must be a positive integer")
    momentum = fields.get("bn_momentum", 0.9)
    if isinstance(momentum, bool) or not isinstance(momentum, (int, float)) or not 0 <= momentum < 1:
        raise UserError(f"model field bn_momentum is {momentum!r}; it must be a number from 0 to below 1")
    for field in ("bottleneck", "zero_init_last_bn", "remat", "scan_blocks"):
        if not isinstance(fields.get(field, False), bool):
            raise UserError(f"model field {field} is {fields[field]!r}; it must be True or False")
    sizes = fields["stage_sizes"]
    if not isinstance(sizes, (tuple, list)) or not sizes or not all(type(n) is int and n > 0 for n in sizes):
        raise UserError(f"model field stage_sizes is {sizes!r}; it must be a tuple of positive integers")
    fields["stage_sizes"] = tuple(sizes)
    fields["dtype"] = _compute_dtype(fields.get("dtype", jnp.float32))
    return module(**fields)


def _compute_dtype(dtype: Any) -> jnp.dtype:
    try:
        resolved = jnp.dtype(dtype)
    except TypeError:
        resolved = None
    if resolved not in (jnp.float32, jnp.bfloat16):
        raise UserError(f"model field dtype is {dtype!r}; it must be 'float32' or 'bfloat16'")
    return resolved
