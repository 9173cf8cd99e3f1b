"""What a config may hold: checks before anything is computed, and the comparison with an earlier run's config."""

import difflib
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from resnet_jax import recipes
from resnet_jax.data import resident, streaming
from resnet_jax.data.streaming import training_box
from resnet_jax.errors import UserError, one_line
from resnet_jax.models import Model, create_model
from resnet_jax.train.schedules import make_schedule, sgd

_PHOTOGRAPHS = "config.data.name is one of " + ", ".join(streaming.NAMES)
_STREAMED_KEYS = ("crop", "crop_size", "eval_shorter_side", "max_unreadable", "threads", "workers")


def _streamed(config: ConfigDict) -> bool:
    return config.data.name in streaming.NAMES


def _has_bottlenecks(config: ConfigDict) -> bool:
    return getattr(create_model(config.model.name), "bottleneck", False)


# Keys that only some settings read: key -> (what must hold, in words, and the test of it).
_READ_ONLY_IF = {
    "data_dir": ("config.data.name is not 'digits'", lambda c: c.data.name != "digits"),
    "model.stride_placement": ("the model has bottleneck blocks", _has_bottlenecks),
    "bn_recompute_batches": ("the model has batch normalisation", lambda c: not c.model.name.startswith("vgg")),
    "data.mean": ("config.data.normalization is 'channel'", lambda c: c.data.normalization == "channel"),
    "data.std": ("config.data.normalization is 'channel'", lambda c: c.data.normalization == "channel"),
    "data.holdout": ("config.data.name is one of " + ", ".join(resident.NAMES), lambda c: not _streamed(c)),
    **{f"data.{key}": (_PHOTOGRAPHS, lambda c: _streamed(c)) for key in _STREAMED_KEYS},
    "data.shorter_side": (
        "config.data.crop is 'scale_jitter', of photographs",
        lambda c: _streamed(c) and c.data.crop == "scale_jitter",
    ),
    "data.area": (
        "config.data.crop is 'random_resized', of photographs",
        lambda c: _streamed(c) and c.data.crop == "random_resized",
    ),
    "schedule.boundaries": ("config.schedule.name is 'step'", lambda c: c.schedule.name == "step"),
    "schedule.factor": (
        "config.schedule.name is 'step' or 'plateau'",
        lambda c: c.schedule.name in ("step", "plateau"),
    ),
    "schedule.patience": ("config.schedule.name is 'plateau'", lambda c: c.schedule.name == "plateau"),
    "schedule.warmup_learning_rate": ("config.schedule.warmup_error is above 0", lambda c: c.schedule.warmup_error > 0),
}
_ELEMENTS = {
    "data.mean": float,
    "data.std": float,
    "data.shorter_side": int,
    "data.area": float,
    "schedule.boundaries": int,
    "model.stage_sizes": int,
}
# fmt: off
_POSITIVE = (  # A new key with a range belongs in one of these, or in ``validate``.
    "steps", "batch_size", "eval_batch_size", "steps_per_dispatch", "log_every", "eval_every", "checkpoint_every",
    "keep_checkpoints", "accumulate_steps", "data.crop_size", "data.eval_shorter_side", "schedule.patience",
)
_NOT_NEGATIVE = (
    "seed", "data.pad", "data.holdout", "optimizer.learning_rate", "optimizer.momentum", "optimizer.weight_decay",
    "schedule.factor", "schedule.warmup_error", "schedule.warmup_learning_rate", "bn_recompute_batches",
    "data.pca_std", "data.max_unreadable", "data.threads", "data.workers",
)
_BELOW_ONE = ("label_smoothing", "ema_decay")
# fmt: on


def validate(config: ConfigDict, num_devices: int) -> None:
    """Raises UserError for the first key that is unknown, of the wrong type, out of range, or set but not read."""
    defaults, values = flatten(recipes.base()), flatten(config)
    known = recipes.base()
    for key, value in values.items():
        if key not in defaults:
            raise UserError(unknown_key(key))
        section, _, leaf = key.rpartition(".")
        expected = (known[section] if section else known).get_type(leaf)
        if not _has_type(value, expected, optional=defaults[key] is None):
            raise UserError(f"config.{key} is {value!r}; it must be of type {expected.__name__}")
        element = _ELEMENTS.get(key)
        if element and value is not None and not all(_has_type(item, element, optional=False) for item in value):
            raise UserError(f"config.{key} is {value!r}; its values must be of type {element.__name__}")
    for key in defaults:
        if key not in values:
            raise UserError(f"config.{key} is missing; start from a recipe in resnet_jax/recipes.py")
    for key, (condition, holds) in _READ_ONLY_IF.items():
        if values[key] != defaults[key] and not holds(config):
            raise UserError(f"config.{key} is set but not read: it is read only where {condition}")
    for key in _POSITIVE:
        if values[key] < 1:
            raise UserError(f"config.{key} is {values[key]!r}; it must be at least 1")
    for key in _NOT_NEGATIVE:
        if not 0 <= values[key] < float("inf"):
            raise UserError(f"config.{key} is {values[key]!r}; it must be a finite number, 0 or above")
    for key in _BELOW_ONE:
        if not 0 <= values[key] < 1:
            raise UserError(f"config.{key} is {values[key]!r}; it must be from 0 to below 1")
    if config.schedule.name == "plateau" and not 0 < config.schedule.factor < 1:
        raise UserError(f"config.schedule.factor is {config.schedule.factor}; at a plateau it must be between 0 and 1")
    make_schedule(config)
    sgd(jnp.float32(0), config)
    if _streamed(config):
        training_box(config)
        _validate_crops(config.data)
    if config.schedule.warmup_error > 1:
        raise UserError(f"config.schedule.warmup_error is {config.schedule.warmup_error}; it is a fraction, at most 1")
    unit = num_devices * config.accumulate_steps
    if config.batch_size % unit:
        parts = f" times {config.accumulate_steps} accumulate_steps" if config.accumulate_steps > 1 else ""
        raise UserError(
            f"config.batch_size {config.batch_size} is not divisible by the {num_devices} devices{parts}; "
            f"use {max(1, config.batch_size // unit) * unit}"
        )
    group = config.model.bn_group_size
    intervals = ("steps", "log_every", "eval_every", "checkpoint_every")
    multiples = [(key, "steps_per_dispatch") for key in intervals]
    part = config.batch_size // config.accumulate_steps  # Batch statistics are over groups of it.
    multiples += [("batch_size", "model.bn_group_size")] if group and config.batch_size > group else []
    if group and config.accumulate_steps > 1 and part % group:
        raise UserError(
            f"a part of a batch, config.batch_size / config.accumulate_steps = {part}, is not a multiple of "
            f"config.model.bn_group_size {group}; change one of the three"
        )
    for key, unit in multiples:
        if values[key] % values[unit]:
            raise UserError(
                f"config.{key} {values[key]} is not a multiple of config.{unit} {values[unit]}; change one of the two"
            )


def _validate_crops(data: ConfigDict) -> None:
    for key in ("shorter_side", "area"):
        if len(data[key]) != 2 or not 0 < data[key][0] <= data[key][1]:
            raise UserError(
                f"config.data.{key} is {data[key]!r}; it must be a range: two values above 0, the less first"
            )
    if data.area[1] > 1:
        raise UserError(f"config.data.area is {data.area!r}; it is a part of the photograph, at most 1")
    least = {"eval_shorter_side": data.eval_shorter_side}
    if data.crop == "scale_jitter":
        least["shorter_side"] = data.shorter_side[0]
    for key, value in least.items():
        if value < data.crop_size:
            raise UserError(f"config.data.{key} {data[key]} is below config.data.crop_size {data.crop_size}; raise it")


def unknown_key(key: str) -> str:
    """The message for a key that ``recipes.base`` does not have."""
    close = difflib.get_close_matches(key, flatten(recipes.base()), n=1)
    hint = f"did you mean config.{close[0]}?" if close else "resnet_jax/recipes.py lists every key"
    return f"unknown config key config.{key}; {hint}"


def make_model(config: ConfigDict, num_classes: int) -> Model:
    """The model that config.model describes. Raises UserError as ``create_model`` does."""
    return create_model(**model_fields(config, num_classes))


def model_fields(config: ConfigDict, num_classes: int) -> dict[str, Any]:
    """config.model as arguments of ``create_model``, without the keys that it leaves to the named model."""
    return {"num_classes": num_classes} | {key: value for key, value in config.model.items() if value is not None}


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Every leaf by its dotted key, lists as tuples."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[key] = tuple(value) if isinstance(value, list) else value
    return flat


def refuse_change(config: ConfigDict, stored: Path, sections: tuple[str, ...] = ("",)) -> None:
    """Raises UserError, naming the keys, if ``config`` differs from the one stored in a workdir.

    ``sections`` limits the comparison to keys with one of these prefixes. Where nothing is stored, nothing is refused.
    """
    if not stored.exists():
        return
    try:
        was = flatten(ConfigDict(json.loads(stored.read_text())))
        was = flatten(recipes.base()) | was  # A key that is newer than the run had its default's effect.
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{stored} is damaged ({one_line(error)}); restore it, or use another workdir") from None
    now = flatten(config)
    keys = [key for key in [*now, *(key for key in was if key not in now)] if key.startswith(sections)]
    keys = [key for key in keys if key != "data_dir"]  # Where the same data lie does not change a run.
    changed = [key for key in keys if was.get(key) != now.get(key)]
    changes = [f"config.{key} (was {was.get(key)!r}, now {now.get(key)!r})" for key in changed]
    if changes:
        raise UserError(
            f"{stored.parent} holds a run with another config: {', '.join(changes)}; "
            f"use another workdir, or pass --allow_config_change"
        )


def _has_type(value: Any, expected: type, optional: bool) -> bool:
    if value is None:
        return optional
    if expected is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, expected)
