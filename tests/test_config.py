import importlib.util
import json
import re
from contextlib import contextmanager
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from ml_collections import ConfigDict

from resnet_jax import config as config_module
from resnet_jax import parallel, recipes
from resnet_jax.config import flatten, make_model, refuse_change, validate
from resnet_jax.data.resident import load_dataset
from resnet_jax.errors import UserError
from resnet_jax.train import loop

PHOTOGRAPHS = {"data.name": "folder"}


def changed(values, config=None):
    """A recipe with some keys changed, by dotted key, without ConfigDict's own checks."""
    config = recipes.base() if config is None else config
    with config.unlocked(), config.ignore_type():
        for key, value in values.items():
            config.update_from_flattened_dict({key: value})
    return config


def refusal(values, num_devices=1):
    with pytest.raises(UserError) as caught:
        validate(changed(values), num_devices)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("step", "steps"), ("optimizer.learning_rat", "optimizer.learning_rate"), ("model.widht", "model.width")],
)
def test_an_unknown_key_is_named_with_the_nearest_one(key, nearest):
    assert refusal({key: 1}) == f"unknown config key config.{key}; did you mean config.{nearest}?"


def test_an_unknown_key_like_no_other_is_named_too():
    assert refusal({"zzzzzzzzzz": 1}).startswith("unknown config key config.zzzzzzzzzz; ")


@pytest.mark.parametrize("key", ["steps", "model.width", "schedule.warmup_error"])
def test_a_missing_key_is_named(key):
    config = recipes.base()
    section, _, leaf = key.rpartition(".")
    del (config[section] if section else config)[leaf]
    with pytest.raises(UserError, match=rf"config\.{key} is missing"):
        validate(config, 1)


def test_a_missing_section_is_named():
    config = recipes.base()
    del config["optimizer"]
    with pytest.raises(UserError, match=r"config\.optimizer\.\w+ is missing"):
        validate(config, 1)


@pytest.mark.parametrize(
    ("key", "value", "type_name"),
    [
        ("steps", 10.5, "int"),
        ("steps", "10", "int"),
        ("seed", True, "int"),
        ("batch_size", None, "int"),
        ("model.name", 20, "str"),
        ("model.width", "8", "int"),
        ("model.stage_sizes", 3, "tuple"),
        ("data.flip", 1, "bool"),
        ("data.mean", 0.5, "tuple"),
        ("data.shorter_side", 256, "tuple"),
        ("data.crop", 224, "str"),
        ("data.workers", None, "int"),
        ("accumulate_steps", 2.0, "int"),
        ("label_smoothing", "0.1", "float"),
        ("ema_decay", "no", "float"),
        ("model.bn_momentum", "0.9", "float"),
        ("optimizer.learning_rate", "0.1", "float"),
        ("data_dir", 3, "str"),
    ],
)
def test_a_value_of_another_type_is_refused(key, value, type_name):
    assert refusal({key: value}) == f"config.{key} is {value!r}; it must be of type {type_name}"


@pytest.mark.parametrize(
    ("key", "value", "type_name"),
    [
        ("data.shorter_side", (256.0, 480), "int"),
        ("data.area", ("0.08", 1.0), "float"),
        ("data.mean", (0.5, None, 0.5), "float"),
        ("schedule.boundaries", (10.5,), "int"),
    ],
)
def test_a_tuple_with_a_value_of_another_type_is_refused(key, value, type_name):
    assert refusal({key: value}) == f"config.{key} is {value!r}; its values must be of type {type_name}"


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer.learning_rate": 1},
        {"model.width": 8, "model.remat": True, "model.dtype": "bfloat16"},
        {"model.stage_sizes": [1, 2]},
        {"data_dir": "/data"},
        {"data.normalization": "channel", "data.mean": [0.5, 0.5, 0.5]},
        {"data.normalization": "channel", "data.mean": None, "data.std": None},
        {"schedule.warmup_error": 0.5, "schedule.warmup_learning_rate": 0.05},
        {"schedule.name": "plateau", "schedule.patience": 1, "schedule.factor": 0.5},
        {"label_smoothing": 0, "ema_decay": 0.9999, "bn_recompute_batches": 10, "accumulate_steps": 4},
        {"label_smoothing": 0.1, "model.bn_momentum": 0, "data.pca_std": 0.1},
        {**PHOTOGRAPHS, "data.max_unreadable": 0, "data.threads": 4, "data.workers": 2},
        {**PHOTOGRAPHS, "data.shorter_side": [224, 224], "data.eval_shorter_side": 224},
        {**PHOTOGRAPHS, "data.crop": "random_resized", "data.area": (1, 1.0)},
        # Random resized crops do not read the range of shorter sides, which may then be below the crop.
        {**PHOTOGRAPHS, "data.crop": "random_resized", "data.crop_size": 288, "data.eval_shorter_side": 320},
    ],
)
def test_values_of_the_right_kind_are_accepted(values):
    validate(changed(values), num_devices=1)


@pytest.mark.parametrize(
    "key",
    [
        "steps",
        "batch_size",
        "accumulate_steps",
        "eval_batch_size",
        "steps_per_dispatch",
        "log_every",
        "eval_every",
        "checkpoint_every",
        "keep_checkpoints",
        "data.crop_size",
        "data.eval_shorter_side",
        "schedule.patience",
    ],
)
@pytest.mark.parametrize("value", [0, -100])
def test_a_count_below_one_is_refused(key, value):
    values = {**PHOTOGRAPHS, "schedule.name": "plateau", "schedule.boundaries": recipes.base().schedule.boundaries}
    assert refusal({**values, key: value}) == f"config.{key} is {value}; it must be at least 1"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("data.pad", -4),
        ("data.holdout", -1),
        ("optimizer.learning_rate", -0.1),
        ("optimizer.learning_rate", float("nan")),
        ("optimizer.learning_rate", float("inf")),
        ("optimizer.momentum", -0.9),
        ("optimizer.weight_decay", float("inf")),
        ("schedule.warmup_error", -0.5),
        ("bn_recompute_batches", -1),
        ("data.pca_std", -0.1),
        ("data.pca_std", float("nan")),
        ("data.max_unreadable", -1),
        ("data.threads", -1),
        ("data.workers", -1),
    ],
)
def test_a_number_that_is_negative_or_not_finite_is_refused(key, value):
    assert (
        refusal({**PHOTOGRAPHS, key: value} if key != "data.holdout" else {key: value})
        == f"config.{key} is {value!r}; it must be a finite number, 0 or above"
    )


@pytest.mark.parametrize("key", ["label_smoothing", "ema_decay"])
@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, float("nan")])
def test_a_fraction_that_is_not_from_0_to_below_1_is_refused(key, value):
    assert refusal({key: value}) == f"config.{key} is {value!r}; it must be from 0 to below 1"


@pytest.mark.parametrize("factor", [0, 1, 1.5])
def test_a_plateau_must_lower_the_rate_and_leave_some_of_it(factor):
    message = f"config.schedule.factor is {factor}; at a plateau it must be between 0 and 1"
    assert refusal({"schedule.name": "plateau", "schedule.factor": float(factor)}).replace(".0;", ";") == message
    validate(changed({"schedule.name": "step", "schedule.factor": factor}), num_devices=1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shorter_side", (480, 256)),
        ("shorter_side", (0, 256)),
        ("shorter_side", (256,)),
        ("shorter_side", (256, 300, 480)),
        ("shorter_side", ()),
        ("area", (1.0, 0.08)),
        ("area", (0, 1.0)),
        ("area", (float("nan"), 1.0)),
        ("area", (0.5,)),
    ],
)
def test_what_is_no_range_is_refused(key, value):
    crop = {"shorter_side": "scale_jitter", "area": "random_resized"}[key]
    message = refusal({**PHOTOGRAPHS, "data.crop": crop, f"data.{key}": value})
    assert message == f"config.data.{key} is {value!r}; it must be a range: two values above 0, the less first"


def test_a_part_of_a_photograph_is_at_most_the_whole():
    message = refusal({**PHOTOGRAPHS, "data.crop": "random_resized", "data.area": (0.5, 1.1)})
    assert message == "config.data.area is (0.5, 1.1); it is a part of the photograph, at most 1"


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"data.eval_shorter_side": 223}, "eval_shorter_side 223"),
        ({"data.shorter_side": (223, 480)}, r"shorter_side \(223, 480\)"),
        ({"data.crop": "random_resized", "data.eval_shorter_side": 223}, "eval_shorter_side 223"),
    ],
)
def test_a_photograph_is_not_resized_to_less_than_its_crop(values, key):
    assert re.fullmatch(
        rf"config\.data\.{key} is below config\.data\.crop_size 224; raise it", refusal(PHOTOGRAPHS | values)
    )


def test_a_batch_that_the_devices_cannot_share_is_refused_with_one_they_can():
    message = refusal({"batch_size": 100}, num_devices=8)
    assert "config.batch_size 100 is not divisible by the 8 devices" in message and message.endswith("use 96")
    validate(changed({"batch_size": 96}), num_devices=8)
    assert refusal({"batch_size": 3}, num_devices=8).endswith("use 8")


def test_a_part_of_a_batch_that_the_devices_cannot_share_is_refused_with_a_batch_that_they_can():
    message = refusal({"batch_size": 96, "accumulate_steps": 5}, num_devices=8)
    assert "config.batch_size 96 is not divisible by the 8 devices times 5 accumulate_steps" in message
    assert message.endswith("use 80")
    validate(changed({"batch_size": 80, "accumulate_steps": 5}), num_devices=8)
    assert refusal({"batch_size": 8, "accumulate_steps": 2}, num_devices=8).endswith("use 16")


def test_batch_norm_groups_must_make_up_each_part_of_a_batch():
    accepted = 0
    for batch_size, devices, parts, group in product((24, 48, 64), (1, 2, 8), (1, 2, 3, 4), (2, 6, 8, 12, 16, 24, 100)):
        config = changed({"batch_size": batch_size, "accumulate_steps": parts, "model.bn_group_size": group})
        shared = batch_size % (devices * parts) == 0
        # A whole batch below the size of a group is one group; a part would be a smaller group than one asks for.
        grouped = batch_size // parts % group == 0 or (parts == 1 and batch_size < group)
        if shared and grouped:
            validate(config, devices)
            accepted += 1
        else:
            with pytest.raises(UserError, match=r"is not (divisible by|a multiple of)"):
                validate(config, devices)
    assert 30 < accepted < 200


def test_a_part_of_a_batch_that_is_not_a_multiple_of_the_groups_is_named():
    message = refusal({"batch_size": 128, "accumulate_steps": 2, "model.bn_group_size": 48})
    assert (
        "config.batch_size / config.accumulate_steps = 64, is not a multiple of config.model.bn_group_size 48"
        in message
    )


@pytest.mark.parametrize(
    ("values", "key", "unit"),
    [
        ({"eval_every": 150, "steps_per_dispatch": 100}, "eval_every", "steps_per_dispatch"),
        ({"checkpoint_every": 150, "steps_per_dispatch": 100}, "checkpoint_every", "steps_per_dispatch"),
        ({"steps": 1001, "steps_per_dispatch": 2}, "steps", "steps_per_dispatch"),
        ({"log_every": 5, "steps_per_dispatch": 2}, "log_every", "steps_per_dispatch"),
        ({"model.bn_group_size": 48}, "batch_size", "model.bn_group_size"),
    ],
)
def test_keys_that_must_divide_one_another_are_named_with_their_values(values, key, unit):
    flat = flatten(changed(values))
    expected = f"config.{key} {flat[key]} is not a multiple of config.{unit} {flat[unit]}; change one of the two"
    assert refusal(values) == expected


@pytest.mark.parametrize(
    ("values", "key", "condition"),
    [
        ({"data.mean": (0.5, 0.5, 0.5)}, "data.mean", "config.data.normalization is 'channel'"),
        ({"data.std": (0.5, 0.5, 0.5)}, "data.std", "config.data.normalization is 'channel'"),
        ({"schedule.name": "cosine", "schedule.boundaries": (1,)}, "schedule.boundaries", "config.schedule.name is"),
        ({"schedule.name": "constant", "schedule.factor": 0.5}, "schedule.factor", "config.schedule.name is 'step'"),
        ({"schedule.warmup_learning_rate": 0.02}, "schedule.warmup_learning_rate", "config.schedule.warmup_error"),
        ({"schedule.patience": 3}, "schedule.patience", "config.schedule.name is 'plateau'"),
        ({"schedule.name": "plateau", "schedule.boundaries": (1,)}, "schedule.boundaries", "config.schedule.name is"),
        ({"schedule.name": "cosine", "schedule.factor": 0.5}, "schedule.factor", "'step' or 'plateau'"),
        ({"model.stride_placement": "v1.5"}, "model.stride_placement", "the model has bottleneck blocks"),
        ({"data.name": "digits", "data_dir": "/data"}, "data_dir", "config.data.name is not 'digits'"),
        ({"data.crop": "random_resized"}, "data.crop", "imagenet2012, folder, packed"),
        ({"data.crop_size": 32}, "data.crop_size", "imagenet2012, folder, packed"),
        ({"data.eval_shorter_side": 300}, "data.eval_shorter_side", "imagenet2012, folder, packed"),
        ({"data.max_unreadable": 0}, "data.max_unreadable", "imagenet2012, folder, packed"),
        ({"data.threads": 2}, "data.threads", "imagenet2012, folder, packed"),
        ({"data.workers": 2}, "data.workers", "imagenet2012, folder, packed"),
        ({"data.shorter_side": (300, 400)}, "data.shorter_side", "config.data.crop is 'scale_jitter', of photographs"),
        ({"data.area": (0.5, 1.0)}, "data.area", "config.data.crop is 'random_resized', of photographs"),
        (
            {**PHOTOGRAPHS, "data.crop": "random_resized", "data.shorter_side": (300, 400)},
            "data.shorter_side",
            "config.data.crop is 'scale_jitter'",
        ),
        ({**PHOTOGRAPHS, "data.area": (0.5, 1.0)}, "data.area", "config.data.crop is 'random_resized'"),
        ({**PHOTOGRAPHS, "data.holdout": 10}, "data.holdout", "digits, cifar10, cifar100"),
    ],
)
def test_a_key_that_is_set_but_would_not_be_read_is_refused(values, key, condition):
    message = refusal(values)
    assert message.startswith(f"config.{key} is set but not read") and condition in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shortcut", "B"),
        ("stride_placement", "v1.5"),
        ("stem", "imagenet"),
        ("width", 8),
        ("stage_sizes", (1, 2)),
        ("dtype", "bfloat16"),
        ("bn_group_size", 4),
        ("bn_momentum", 0.5),
        ("zero_init_last_bn", True),
        ("remat", True),
        ("scan_blocks", True),
    ],
)
def test_each_model_key_sets_its_field(key, value):
    config = recipes.base()
    default = getattr(make_model(config, 10), key)
    field = getattr(make_model(changed({f"model.{key}": value}), 10), key)
    assert field == (jnp.bfloat16 if key == "dtype" else value)
    assert field != default


def stored(tmp_path, config):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    return path


def test_the_same_config_is_no_change_also_where_json_made_lists_of_tuples(tmp_path):
    config = recipes.digits_quickstart()
    refuse_change(config, stored(tmp_path, config))


def test_a_changed_config_is_refused_with_each_key_and_both_values(tmp_path):
    path = stored(tmp_path, recipes.base())
    with pytest.raises(UserError) as caught:
        refuse_change(changed({"seed": 7, "data.flip": False, "model.stage_sizes": (1, 1)}), path)
    message = str(caught.value)
    for change in ("config.seed (was 0, now 7)", "config.data.flip (was True, now False)"):
        assert change in message
    assert "config.model.stage_sizes (was None, now (1, 1))" in message
    assert message.count("(was ") == 3
    assert str(tmp_path) in message and "--allow_config_change" in message


def test_a_key_that_only_the_stored_config_has_is_a_change(tmp_path):
    older = recipes.base()
    older.old_key = 3
    with pytest.raises(UserError, match=r"config\.old_key \(was 3, now None\)"):
        refuse_change(recipes.base(), stored(tmp_path, older))


def test_where_the_data_lie_is_no_change(tmp_path):
    refuse_change(changed({"data_dir": "elsewhere"}), stored(tmp_path, recipes.base()))


def test_sections_limit_the_comparison(tmp_path):
    path = stored(tmp_path, recipes.base())
    refuse_change(changed({"steps": 5, "optimizer.momentum": 0.5}), path, sections=("model.", "data."))
    with pytest.raises(UserError, match=r"config\.data\.pad \(was 4, now 2\)"):
        refuse_change(changed({"steps": 5, "data.pad": 2}), path, sections=("model.", "data."))


def test_no_stored_config_is_no_change(tmp_path):
    refuse_change(recipes.base(), tmp_path / "config.json")


@pytest.mark.parametrize("content", [b"", b'{"seed": 0', b"[1]", b"3", b"\xff\xfe"])
def test_a_damaged_stored_config_is_a_user_error_that_names_it(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        refuse_change(recipes.base(), path)


class ReadRecorder:
    """Records the dotted keys that are read from a config, but for reads inside of ``hide``."""

    def __init__(self, config, monkeypatch):
        sections = {id(config): ""} | {id(v): f"{k}." for k, v in config.items() if isinstance(v, ConfigDict)}
        self.keys = set()
        self._hidden = False
        getitem = ConfigDict.__getitem__

        def recording(section, key):
            value = getitem(section, key)
            if not self._hidden and id(section) in sections and "." not in str(key):
                self.keys.add(f"{sections[id(section)]}{key}")
            return value

        # Attributes, items() and get() all come through here.
        monkeypatch.setattr(ConfigDict, "__getitem__", recording)

    @contextmanager
    def _hide(self):
        before, self._hidden = self._hidden, True
        yield
        self._hidden = before

    def hide(self, monkeypatch, owner, name):
        function = getattr(owner, name)

        def hidden(*args, **kwargs):
            with self._hide():
                return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, hidden)


def keys_read(config, workdir, monkeypatch):
    """The keys that training reads, leaving out what reads every key only to check or to store it."""
    with monkeypatch.context() as patch:
        recorder = ReadRecorder(config, patch)
        for owner, names in (
            (config_module, ("flatten", "validate", "refuse_change")),
            (loop, ("validate", "refuse_change", "prepare_workdir")),
        ):
            for name in names:
                recorder.hide(patch, owner, name)
        mesh = parallel.data_mesh(jax.devices()[:1])  # The sooner compiled.
        patch.setattr(parallel, "data_mesh", lambda: mesh)
        loop.train(config, workdir)
        return recorder.keys


# Read whatever the settings are: model keys all together, and a rate that is chosen on the device.
ALWAYS_READ = {"model.stride_placement", "schedule.warmup_learning_rate"}


def write_photographs(root):
    for split, label in product(("train", "val"), ("cat", "dog")):
        (root / split / label).mkdir(parents=True)
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 256, (40, 44, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(root / split / label / f"{number}.jpg")


def test_every_key_is_read_by_the_program_or_refused_if_it_is_set(tmp_path, monkeypatch):
    tiny = {
        "model.stage_sizes": (1,),
        "model.width": 4,
        "steps": 2,
        "batch_size": 4,
        "log_every": 1,
        "eval_every": 1,
        "checkpoint_every": 2,
    }
    write_photographs(tmp_path / "data")
    crops = {"data.crop_size": 32, "data.eval_shorter_side": 36}
    photographs = tiny | crops | PHOTOGRAPHS | {"data_dir": str(tmp_path / "data"), "data.pad": 0}
    runs = {
        "digits": tiny | {"data.name": "digits"},
        "streamed": photographs | {"schedule.name": "plateau", "data.shorter_side": (36, 48)},
        "resized": photographs
        | {"schedule.name": "cosine", "data.crop": "random_resized", "data.normalization": "channel"},
    }
    every_key, read = set(flatten(recipes.base())), set()
    for name, values in runs.items():
        config = changed(values)
        found = keys_read(config, tmp_path / name, monkeypatch) & every_key
        # What a run does not read is just what may not be set for it.
        refused = {key for key, (_, holds) in config_module._READ_ONLY_IF.items() if not holds(config)}
        assert every_key - found == refused - ALWAYS_READ, name
        read |= found
    assert read == every_key


def test_prepared_data_sets_that_live_on_the_device_have_a_folder_too(tmp_path, monkeypatch):
    config = changed({"data_dir": str(tmp_path / "nothing")})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # No TensorFlow, or it would be prepared.
    with pytest.raises(UserError, match="nothing"):
        load_dataset(config)
