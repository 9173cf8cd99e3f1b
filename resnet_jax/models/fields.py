"""The fields of networks by name: whether a value will do, the part it stands for, and the part that it belongs to.

A field is one of the model, of its block where that has some of its own, or of its normalisation.
"""

import dataclasses
import functools
import numbers
import operator
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.kernels import PLAIN, Kernels
from resnet_jax.models.attention import ATTENTION
from resnet_jax.models.blocks import Block
from resnet_jax.models.model import check_frozen
from resnet_jax.models.pooling import ANTIALIAS
from resnet_jax.models.shortcuts import SHORTCUTS, class_of
from resnet_jax.models.stems import PREACTIVATION, STEMS, Stem

_NORM_FIELDS = {"bn_group_size": "group_size", "bn_momentum": "momentum"}  # Of batch normalisation.


def _names(module: Any) -> list[str]:
    if not dataclasses.is_dataclass(module):  # A function that makes one.
        return []
    return [field.name for field in dataclasses.fields(module) if field.name not in ("name", "parent", "kernels")]


def field_names(model: Any, fields: Mapping[str, Any]) -> list[str]:
    """The names of all fields that a model of this class, block and normalisation has. Raises UserError for the two."""
    for part in {"block", "norm"} & fields.keys():
        _CHECKS[part](part, fields[part])
    names = _names(model)
    if "norm" in names:
        of_norm = _names(class_of(fields.get("norm", model.norm)))
        names += [field for field, name in _NORM_FIELDS.items() if name in of_norm]
    return names + _fields_of_block(fields)


def _fields_of_block(fields: Mapping[str, Any]) -> list[str]:
    """Those that a block has beyond what all blocks have."""
    if "block" not in fields:
        return []
    return [name for name in _names(class_of(fields["block"])) if name not in _names(Block)]


def make_model(model: Any, fields: Mapping[str, Any], kernels: Kernels = PLAIN) -> Any:
    """The model of checked fields, each given to the part that it belongs to.

    Raises UserError for a value that will not do, and for values that do not go together.
    """
    if not isinstance(kernels, Kernels):
        raise UserError(f"kernels is {kernels!r}; it must be a resnet_jax.kernels.Kernels, such as fast_kernels makes")
    if isinstance(fields.get("stem"), str) and f"{fields['stem']}{PREACTIVATION}" in STEMS and _preactivates(model):
        fields = {**fields, "stem": f"{fields['stem']}{PREACTIVATION}"}
    checked = {field: _CHECKS[field](field, value) if field in _CHECKS else value for field, value in fields.items()}
    checked = {field: _same(_by_annotation(checked, field, value)) for field, value in checked.items()}
    own = {field: value for field, value in checked.items() if field in _names(model)}
    of_block = {field: checked[field] for field in _fields_of_block(checked) if field in checked}
    if of_block:
        own["block"] = partial(checked["block"], **of_block)
    of_norm = {_NORM_FIELDS[field]: value for field, value in checked.items() if field in _NORM_FIELDS}
    if of_norm:
        own["norm"] = partial(checked.get("norm", model.norm), **of_norm)
    frozen = own.pop("frozen_stages", ())
    made = model(**own, kernels=kernels)
    if "block" in own:
        _check_stem(made)
        made.check_blocks()
    return made.clone(frozen_stages=check_frozen(made, frozen)) if frozen else made


def _preactivates(model: Any) -> bool:
    return model.family == "preactivation"


def _check_stem(model: Any) -> None:
    if model.stem.preactivation == _preactivates(model):
        return
    given = next((repr(name) for name, stem in STEMS.items() if stem == model.stem), "another")
    names = " or ".join(repr(name) for name, stem in STEMS.items() if stem.preactivation == _preactivates(model))
    has = "does not end in a normalisation" if model.stem.preactivation else "ends in a normalisation"
    blocks = "pre-activation blocks, which begin with one" if _preactivates(model) else "blocks that begin with none"
    raise UserError(f"model field stem is {given}, which {has}, before {blocks}; use {names}")


# Fields that change neither which variables there are, but for the classifier's, nor what is computed with them once
# they are trained.
FREE = frozenset(
    (
        *("num_classes", "dtype", "kernels", "drop_path", "dropout", "zero_init_last_bn", "remat", "scan_blocks"),
        *("frozen_stages", "frozen_norms", *_NORM_FIELDS),
    )
)


def definition(model: Any) -> dict[str, Any]:
    """What a network computes, by field, but for its classifier: equal for networks that can take each other's weights.

    Equal shapes do not say it, since shortcuts may have no parameters, and strides have none.
    """
    found = {"model": type(model)} | {name: getattr(model, name) for name in _names(model) if name not in FREE}
    for part in {"block", "norm"} & set(found):
        kind, given = class_of(found[part]), getattr(found[part], "keywords", {})
        known = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()  # A function has none.
        defaults = {field.name: field.default for field in known if field.name in _names(kind)}
        of_all = _names(Block) if part == "block" else _NORM_FIELDS.values()
        found[part] = (kind, {name: value for name, value in (defaults | given).items() if name not in of_all})
    return found


@functools.lru_cache(maxsize=None, typed=True)
def partial(part: Callable[..., Any], *arguments: Any, **fields: Any) -> Callable[..., Any]:
    """The same object for the same arguments, so that models of equal fields are equal."""
    return functools.partial(part, *arguments, **fields)


def _same(value: Any) -> Any:
    """A caller's ``functools.partial`` as ``partial`` gives it, if its arguments can be compared."""
    if not isinstance(value, functools.partial):
        return value
    try:
        return partial(value.func, *value.args, **value.keywords)
    except TypeError:  # An argument without a hash.
        return value


# Values: a check returns what the value stands for, and raises UserError.


def _factory(value: Any) -> bool:
    """Whether it is a function, a class or a partial of one, and not what such makes."""
    return callable(value) and not isinstance(value, nn.Module)


def _block(value: Any) -> bool:
    return isinstance(class_of(value), type) and issubclass(class_of(value), Block)


def _stem(value: Any) -> bool:
    return isinstance(value, Stem)


def _no_part(value: Any) -> bool:
    return False


def _of_kind(kind: Callable[[Any], bool], what: str) -> Callable[[str, Any], Any]:
    """A part of a kind; ``what`` says of which."""

    def check(field: str, value: Any) -> Any:
        if not kind(value):
            given = " ".join(repr(value).split())  # Of a module it has many lines.
            raise UserError(f"model field {field} is {given}; it must be {what}")
        return value

    return check


def _one_of(choices: Mapping[str, Any], others: Callable[[Any], bool] = _no_part) -> Callable[[str, Any], Any]:
    """A part by its name, or ``others`` of that kind."""
    names = " or ".join(map(repr, choices))

    def check(field: str, value: Any) -> Any:
        return choices[value] if isinstance(value, str) and value in choices else _of_kind(others, names)(field, value)

    return check


def _optional_part(choices: Mapping[str, Any]) -> Callable[[str, Any], Any]:
    """A part by its name, another part of that kind, or None for none."""
    named = _one_of(choices)
    other = _of_kind(_factory, f"{' or '.join(map(repr, choices))}, or a module class or a functools.partial of one")

    def check(field: str, value: Any) -> Any:
        if value is None:
            return None
        return named(field, value) if isinstance(value, str) and value in choices else other(field, value)

    return check


def _integer(least: int) -> Callable[[str, Any], int]:
    def check(field: str, value: Any) -> int:
        integer = _as_integer(value)
        if integer is None or integer < least:
            kind = "a positive integer" if least else "an integer of at least 0"
            raise UserError(f"model field {field} is {value!r}; it must be {kind}")
        return integer

    return check


def _as_integer(value: Any) -> int | None:
    """Python's of an integer, also of NumPy's; None for anything else, also for a bool."""
    try:
        return None if isinstance(value, (bool, np.bool_)) else operator.index(value)  # NumPy 2.0's has an index.
    except TypeError:
        return None


def _number(field: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UserError(f"model field {field} is {value!r}; it must be a number")
    return value


def _fraction(field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise UserError(f"model field {field} is {value!r}; it must be a number from 0 to below 1")
    return value


def _boolean(field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"model field {field} is {value!r}; it must be True or False")
    return value


def _whole_number(field: str, value: Any) -> int:
    integer = _as_integer(value)
    if integer is None:
        raise UserError(f"model field {field} is {value!r}; it must be a whole number")
    return integer


_BY_ANNOTATION: dict[Any, Callable[[str, Any], Any]] = {bool: _boolean, int: _whole_number, float: _number}


def _by_annotation(fields: Mapping[str, Any], field: str, value: Any) -> Any:
    """The value; of a block's own field without another check, one that its annotation allows, if that is plain."""
    if field in _CHECKS or field not in _fields_of_block(fields):
        return value
    (kind,) = (own.type for own in dataclasses.fields(class_of(fields["block"])) if own.name == field)
    return _BY_ANNOTATION.get(kind, lambda field, value: value)(field, value)


def _stage_sizes(field: str, value: Any) -> tuple[int, ...]:
    sizes = [_as_integer(size) or 0 for size in value] if isinstance(value, (tuple, list)) else []
    if not sizes or min(sizes) < 1:
        raise UserError(f"model field {field} is {value!r}; it must be a tuple of positive integers")
    return tuple(sizes)


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
    "stem": _one_of(STEMS, _stem),
    "shortcut": _one_of(SHORTCUTS, callable),
    "block": _of_kind(_block, "a subclass of resnet_jax.models.blocks.Block, or a functools.partial of one"),
    "conv": _of_kind(_factory, "a module class such as resnet_jax.models.layers.Conv, or a functools.partial of one"),
    "norm": _of_kind(
        _factory, "a module class such as resnet_jax.models.norms.GroupNorm, or a functools.partial of one"
    ),
    "activation": _of_kind(callable, "a function of an array such as flax.linen.relu"),
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
    "activated": _boolean,
    "activated_stem": _boolean,
    "frozen_norms": _boolean,
    "zero_init_last_bn": _boolean,
    "remat": _boolean,
    "scan_blocks": _boolean,
}
