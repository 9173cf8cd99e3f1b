"""The schema of a run: typed, frozen and nested, with each key's range beside it; and the comparison of two configs.

A section that can be one of several parts (``optimizer``, ``schedule``, ...) is a union; its ``name`` (or ``kind``)
picks the part, and the keys of the section are that part's fields.
"""

import ast
import difflib
import inspect
import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder
from pydantic import Field, ValidationError

from resnet_jax.data import Data, Resident
from resnet_jax.data.normalization import AnyNormalization, PerPixelMean
from resnet_jax.data.transforms import Transforms
from resnet_jax.errors import UserError, one_line
from resnet_jax.models.zoo import all_fields
from resnet_jax.parts import Count, Duration, Fraction, NonNegativeInt, Part, PositiveDuration, variants
from resnet_jax.tasks import AnyTask
from resnet_jax.tasks.classification import Classification
from resnet_jax.train.finetune import FineTune
from resnet_jax.train.initial import AnyInit, NoWeights
from resnet_jax.train.optimizers import SGD, AnyOptimizer
from resnet_jax.train.schedules import AnySchedule, Step

Choice = TypeVar("Choice")


class Model(Part):
    """A network by name, and what of it is changed; a key that is left out is the named network's own.

    They are fields of ``resnet_jax.create_model``, which says what they mean, but not all of them: ``antialias``,
    ``cardinality``, ``norm``, ... are those of the named network. A network with others of these is a row of
    ``_others`` in ``resnet_jax/models/zoo.py``.
    """

    name: str = "resnet20"
    shortcut: Literal["A", "B", "C", "none", "gated"] | None = None
    stride_placement: Literal["v1", "v1.5"] | None = None
    stem: Literal["imagenet", "cifar"] | None = None
    attention: str | None = None  # One of ``resnet_jax.models.attention.ATTENTION``.
    width: Count | None = None
    stage_sizes: tuple[Count, ...] | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    bn_group_size: Count | None = None
    bn_momentum: Fraction | None = None
    zero_init_last_bn: bool | None = None
    drop_path: Fraction | None = None
    dropout: Fraction | None = None
    remat: bool | None = None
    scan_blocks: bool | None = None
    hidden: Count | None = None

    @property
    def overrides(self) -> dict[str, Any]:
        """The keys that are given, as arguments of ``create_model``."""
        return self.model_dump(exclude={"name"}, exclude_none=True)


class Config(Part):
    """All that decides a run. The defaults are the paper's on CIFAR-10 (section 4.2), for ResNet-20."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # ``jax.random.key`` would drop the bits beyond.
    data_dir: str | None = None  # Prepared data sets or photographs; default $TFDS_DATA_DIR, then TFDS's own.
    steps: PositiveDuration = 64_000
    batch_size: Count = 128  # Over all devices.
    accumulate_steps: Count = 1  # Gradients are averaged over this many parts of a batch, one after the other.
    eval_batch_size: Count = 500
    steps_per_dispatch: Count = 1  # Steps in one call; more hide the host's latency on an accelerator.
    log_every: PositiveDuration = 100  # Like the next two a multiple of steps_per_dispatch.
    eval_every: PositiveDuration = 1_000
    checkpoint_every: PositiveDuration = 1_000
    keep_checkpoints: Count = 2  # The latest ones, besides the best.
    on_nonfinite: Literal["stop", "skip"] = "stop"  # Skip: a step that is not finite changes nothing and is counted.
    ema_decay: Fraction = 0.0  # Of a moving average of the variables, which evaluations then use; 0: off.
    ema_every: Count = 1  # It is updated at every so many steps.
    ema_start: Duration | None = None  # It is a copy until then. Where it is not set, its decay climbs from the start.
    bn_recompute_batches: NonNegativeInt = 0  # Batch statistics are recomputed over this many batches at the end.

    model: Model = Model()
    data: Data = Resident()
    normalization: AnyNormalization = PerPixelMean()
    transforms: Transforms = Transforms()
    task: AnyTask = Classification()
    optimizer: AnyOptimizer = SGD()
    schedule: AnySchedule = Step()
    init: AnyInit = NoWeights()
    finetune: FineTune = FineTune()


_OF_THE_MACHINE = ("data_dir", "steps_per_dispatch")
_PICKS = ("name", "kind")  # The keys that pick a section's part.


def checked(values: Mapping[str, Any]) -> Config:
    """The config of nested values. Raises UserError, naming the first key at fault."""
    try:
        return Config.model_validate(_tuples(values))
    except ValidationError as error:
        raise UserError(explain(error, values)) from None


def flatten(config: Part) -> dict[str, Any]:
    """Every key that is set by its dotted name; optional keys that are not set are left out."""
    return _flat(config.model_dump(exclude_none=True))


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """The config with some keys changed, by dotted name; None unsets an optional one.

    Where a change picks another part for a section (``{"schedule.name": "cosine"}``), the section keeps the keys that
    the new part has, too, and loses the others. Raises UserError for a key that is unknown or out of range.
    """
    values = config.model_dump(exclude_none=True)
    picks_first = sorted(changes.items(), key=lambda change: change[0].rpartition(".")[2] not in _PICKS)
    for key, value in picks_first:
        *sections, leaf = key.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise UserError(unknown_key(key))
        if isinstance(place.get(leaf), dict):
            raise UserError(whole_section(key))
        if value is None:
            place.pop(leaf, None)
            if key not in _all_keys():
                raise UserError(unknown_key(key))
        else:
            place[leaf] = value
        if leaf in _PICKS:
            _change_part(values, sections, leaf)
    return checked(values)


ALLOW_CHANGE = "use another workdir, or pass --allow_config_change"
"""How to go on where a config differs from the one stored in a workdir."""


def refuse_change(
    config: Config,
    stored: Path,
    sections: tuple[str, ...] = ("",),
    fix: str = ALLOW_CHANGE,
) -> None:
    """Raises UserError, naming the keys and the ``fix``, if ``config`` differs from the one stored in a workdir.

    ``sections`` limits the comparison to keys with one of these prefixes. Where nothing is stored, nothing is refused.
    Where the data lie and how many steps are in a call may change, as the machine may.
    """
    if not stored.exists():
        return
    was, now = flatten(read_config(stored)), flatten(config)
    keys = [key for key in dict.fromkeys([*now, *was]) if key.startswith(sections) and key not in _OF_THE_MACHINE]
    changes = [
        f"config.{key} (was {was.get(key, 'unset')!r}, now {now.get(key, 'unset')!r})"
        for key in keys
        if was.get(key) != now.get(key)
    ]
    if changes:
        raise UserError(f"{stored.parent} holds a run with another config: {', '.join(changes)}; {fix}")


def read_config(path: Path) -> Config:
    """The config that a run stored; a key that is newer than the run has its default. Raises UserError if damaged."""
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("it is not a mapping of keys")
        return Config.model_validate(_tuples(values))
    except ValidationError as error:
        raise UserError(
            f"{path} is damaged or of another version of this program ({explain(error, values)}); "
            f"restore it, or use another workdir"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged ({one_line(error)}); restore it") from None


def to_json(config: Config) -> str:
    """What ``read_config`` reads."""
    return json.dumps(config.model_dump(mode="json", exclude_none=True), indent=2) + "\n"


def load_config(path: str) -> Config:
    """The config of ``FILE.py`` or ``FILE.py:MEMBER``, a file with a function get_config. Raises UserError."""
    file, _, member = path.partition(":")
    if not Path(file).is_file():
        raise UserError(f"there is no config file {file}; the recipes are in configs/")
    code: dict[str, Any] = {"__name__": Path(file).stem, "__file__": file}
    exec(compile(Path(file).read_text(), file, "exec"), code)
    if member and not inspect.signature(code["get_config"]).parameters:
        raise UserError(no_members(file, member))
    config = code["get_config"](*([member] if member else []))
    if not isinstance(config, Config):
        raise UserError(f"get_config() of {file} returns {type(config).__name__}; it must return a Config")
    return config


def no_members(file: str, member: str) -> str:
    """What is wrong where a member is asked of a file whose get_config takes none."""
    return f"{file} has no members; leave :{member} out"


def choose(choices: Mapping[str, Choice], member: str, what: str = "member") -> Choice:
    """What a config file's table has for a member. Raises UserError, which names those that there are.

    ``what`` says which part of a member's name it is, as in "STEP of NETWORK-STEP".
    """
    if member not in choices:
        raise UserError(f"there is no {what} {member!r}; name one of {', '.join(choices)}")
    return choices[member]


# The command line.


def to_flags(config: Config) -> ConfigDict:
    """Every key of every part a section can be, as text, for ``--config.key=value``; None where it is not set."""
    return _text_of(Config, config.model_dump(exclude_none=True))


def from_flags(config: Config, given: Mapping[str, str]) -> Config:
    """The config with the keys that were given on the command line as text."""
    return override(config, {key: _parse(text, key in _text_keys()) for key, text in given.items()})


def _text_of(part: type[Part], values: Mapping[str, Any]) -> ConfigDict:
    flags = ConfigDict()
    for key, (choices, _) in _fields([part]).items():
        if choices:
            flags[key] = ConfigDict()
            for variant in choices:
                for inner, text in _text_of(variant, values.get(key, {})).items(preserve_field_references=True):
                    if inner not in flags[key]:
                        flags[key][inner] = text
        elif key in values:
            flags[key] = str(values[key])
        else:
            flags[key] = placeholder(str)
    return flags


def _parse(text: str, is_text: bool) -> Any:
    if text == "None":
        return None
    if is_text:
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # What ``literal_eval`` can raise.
        return text


# What the schema says of itself.


def _fields(parts: list[type[Part]]) -> dict[str, tuple[list[type[Part]], Any]]:
    """By key of any of the parts: the parts that it can be, and its annotation."""
    return {
        key: (variants(field.annotation), field.annotation)
        for part in parts
        for key, field in part.model_fields.items()
    }


def _all_keys(parts: list[type[Part]] | None = None, prefix: str = "") -> dict[str, Any]:
    """The annotation of every key, of any part, by dotted name."""
    found: dict[str, Any] = {}
    for key, (choices, annotation) in _fields(parts or [Config]).items():
        found |= _all_keys(choices, f"{prefix}{key}.") if choices else {f"{prefix}{key}": annotation}
    return found


def is_key(key: str) -> bool:
    """Whether a dotted name is a key of some part that a config can have."""
    return key in _all_keys()


def is_section(key: str) -> bool:
    """Whether a dotted name is that of a section, which has keys of its own."""
    return any(known.startswith(f"{key}.") for known in _all_keys())


def _text_keys() -> set[str]:
    """The keys whose values are text whatever they look like: names and paths."""

    def is_text(annotation: Any) -> bool:
        if get_origin(annotation) in (Union, types.UnionType):
            return all(choice is type(None) or is_text(choice) for choice in get_args(annotation))
        return annotation is str or get_origin(annotation) is Literal

    return {key for key, annotation in _all_keys().items() if is_text(annotation)}


def _change_part(values: dict[str, Any], sections: list[str], pick: str) -> None:
    """Gives a section the keys of the part that was picked: those it has already, and defaults."""
    parts: list[type[Part]] = [Config]
    place: dict[str, Any] = values
    for section in sections:
        fields = _fields(parts)
        if section not in fields:
            return
        parts, place = fields[section][0], place[section]
    if not all(pick in part.model_fields for part in parts):
        return  # A key of one of the parts alone, such as a detector's kind, picks none of them.
    chosen = [part for part in parts if place[pick] in get_args(part.model_fields[pick].annotation)]
    if not chosen:
        return
    part = chosen[0]()
    kept = {key: value for key, value in place.items() if key in type(part).model_fields}
    place.clear()
    place.update(part.model_dump(exclude_none=True) | kept)


# Messages.


def explain(error: ValidationError, values: Any = None) -> str:
    """The first fault in a line that names the key, and the values it may have."""
    fault = error.errors()[0]
    path, place, picked, tagged = [], values, "", False
    parts: list[type[Part]] = [Config]
    for step in fault["loc"]:
        if isinstance(place, Mapping):
            # Which part of a union it is; one may be called as a key is.
            of_union = len(parts) > 1 and not tagged and step in (place.get("name"), place.get("kind"))
            if of_union or (step not in place and fault["type"] != "missing"):
                picked, tagged = str(step), True
                continue
            place, picked, tagged = place.get(step), picked if step == fault["loc"][-1] else "", False
            parts = _fields(parts)[step][0] if step in _fields(parts) else []
        elif values is not None:
            break
        path.append(str(step))
    key = ".".join(path)
    if fault["type"] == "extra_forbidden":
        return unknown_key(key, picked)
    if fault["type"] in ("union_tag_invalid", "literal_error"):
        expected = str(fault.get("ctx", {}).get("expected_tags") or fault.get("ctx", {}).get("expected"))
        if fault["type"] == "union_tag_invalid":
            pick = str(fault["ctx"]["discriminator"]).strip("'")
            key, value = f"{key}.{pick}", fault["input"].get(pick)
        else:
            value = fault["input"]
        return f"config.{key} is {value!r}; it must be one of {expected}"
    message = fault["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
    for was, plain in _PLAINER.items():
        message = message.replace(was, plain)
    if not key:
        return message
    return f"config.{key} is {fault['input'] if place is None else place!r}; {message}"


_PLAINER = {
    "a valid integer": "an integer",
    "a valid number": "a number",
    "a valid string": "text",
    "a valid tuple": "a tuple",
    "a valid boolean": "True or False",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
}


def whole_section(key: str, value: str = "VALUE") -> str:
    """The message for a section that was set to a value, which is meant for the key that picks its part, if any."""
    keys = [known for known in _all_keys() if known.startswith(f"{key}.")]
    picks = [f"{key}.{pick}" for pick in _PICKS if f"{key}.{pick}" in keys]
    example = f"{picks[0]}={value}" if picks else f"{keys[0]}=VALUE"
    return f"config.{key} is a section; set its keys, such as --config.{example}"


def unknown_key(key: str, picked: str = "") -> str:
    """The message for a key that no part has, or that the ``picked`` part of its section does not have."""
    if is_key(key) or is_section(key):
        section = key.rpartition(".")[0]
        return f"config.{key} is set, but {section} {picked!r} has no such key; remove it, or choose another {section}"
    section, _, field = key.rpartition(".")
    if section == "model" and field in all_fields():
        own = "the named network's own; name a network that has it, or add one to resnet_jax/models/zoo.py"
        return f"config.{key} is no key: {field} is {'that of the data' if field == 'num_classes' else own}"
    fields = [f"model.{name}" for name in all_fields()] if section == "model" else []
    close = difflib.get_close_matches(key, [*_all_keys(), *fields], n=1)
    hint = f"did you mean config.{close[0]}?" if close else "resnet_jax/config.py lists every key"
    return f"unknown config key config.{key}; {hint}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _tuples(values: Any) -> Any:
    """Converts lists, which JSON has instead of tuples, to tuples."""
    if isinstance(values, Mapping):
        return {key: _tuples(value) for key, value in values.items()}
    return tuple(_tuples(value) for value in values) if isinstance(values, (list, tuple)) else values
