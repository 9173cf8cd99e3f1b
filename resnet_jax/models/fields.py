"""The fields of networks by name: whether a value will do, the part it stands for, and the part that it belongs to.

A field is one of the model, of its block where that has some of its own, or of its normalisation.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from resnet_jax.errors import UserError
from resnet_jax.kernels import PLAIN, Kernels
from resnet_jax.models.attention import ATTENTION
from resnet_jax.models.blocks import Block
from resnet_jax.models.pooling import ANTIALIAS
from resnet_jax.models.shortcuts import SHORTCUTS
from resnet_jax.models.stems import STEMS

_NORM_FIELDS = {"bn_group_size": "group_size", "bn_momentum": "momentum"}  # Of batch normalisation.


def _names(module: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(module) if field.name not in ("name", "parent", "kernels")]


def field_names(model: Any, fields: Mapping[str, Any]) -> list[str]:
    """The names of all fields that a model of this class, block and normalisation has."""
    names = _names(model)
    if "norm" in names:
        of_norm = _names(_class_of(fields.get("norm", model.norm)))
        names += [field for field, name in _NORM_FIELDS.items() if name in of_norm]
    return names + _fields_of_block(fields)


def _fields_of_block(fields: Mapping[str, Any]) -> list[str]:
    """Those that a block has beyond what all blocks have."""
    if "block" not in fields:
        return []
    return [name for name in _names(_class_of(fields["block"])) if name not in _names(Block)]


def _class_of(part: Any) -> Any:
    """The class of which a part is a partial, or which it is."""
    return part.func if isinstance(part, functools.partial) else part


def make_model(model: Any, fields: Mapping[str, Any], kernels: Kernels = PLAIN) -> Any:
    """The model of checked fields, each given to the part that it belongs to."""
    checked = {field: _CHECKS[field](field, value) if field in _CHECKS else value for field, value in fields.items()}
    own = {field: value for field, value in checked.items() if field in _names(model)}
    of_block = {field: checked[field] for field in _fields_of_block(fields) if field in checked}
    if of_block:
        own["block"] = partial(checked["block"], **of_block)
    of_norm = {_NORM_FIELDS[field]: value for field, value in checked.items() if field in _NORM_FIELDS}
    if of_norm:
        own["norm"] = partial(checked.get("norm", model.norm), **of_norm)
    return model(**own, kernels=kernels)


@functools.cache
def partial(part: Callable[..., Any], **fields: Any) -> Callable[..., Any]:
    """The same object for the same arguments, so that models of equal fields are equal."""
    return functools.partial(part, **fields)


# Values: a check returns what the value stands for, and raises UserError.


def _one_of(choices: Mapping[str, Any]) -> Callable[[str, Any], Any]:
    """A part by its name, or another part of that kind."""

    def check(field: str, value: Any) -> Any:
        if value is None or isinstance(value, (str, bool, int, float)):
            if value not in choices:
                raise UserError(f"model field {field} is {value!r}; it must be {' or '.join(map(repr, choices))}")
            return choices[str(value)]
        return value

    return check


def _optional_part(choices: Mapping[str, Any]) -> Callable[[str, Any], Any]:
    """A part by its name, another part of that kind, or None for none."""

    def check(field: str, value: Any) -> Any:
        return None if value is None else _one_of(choices)(field, value)

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
    "attention": _optional_part(ATTENTION),
    "antialias": _optional_part(ANTIALIAS),
    "cardinality": _integer(1),
    "base_width": _integer(1),
    "reduce_first": _integer(1),
    "widen": _integer(1),
    "stride_placement": _one_of({"v1": "v1", "v1.5": "v1.5"}),
    "dtype": _compute_dtype,
    "bn_group_size": _group_size,
    "bn_momentum": _fraction,
    "drop_path": _fraction,
    "dropout": _fraction,
    "zero_init_last_bn": _boolean,
    "remat": _boolean,
    "scan_blocks": _boolean,
}
