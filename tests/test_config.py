import importlib.util
import json
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from resnet_jax import config as config_module
from resnet_jax import parallel, recipes
from resnet_jax.config import flatten, make_model, refuse_change, validate
from resnet_jax.data.resident import load_dataset
from resnet_jax.errors import UserError
from resnet_jax.models.resnet import ResNet
from resnet_jax.train import loop

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


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


def test_there_are_configs():
    assert len(CONFIGS) > 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_is_valid_and_makes_its_model(path):
    config = load(path)
    validate(config, num_devices=2)
    assert isinstance(make_model(config, num_classes=10), ResNet)


@pytest.mark.parametrize("name", ["resnet110", "plain110", "resnet1202"])
def test_the_paper_recipe_warms_the_deepest_networks_up(name):
    # Section 4.2: 0.01 until the training error is below 80 %.
    config = recipes.cifar10_paper(name)
    assert (config.schedule.warmup_error, config.schedule.warmup_learning_rate) == (0.8, 0.01)
    assert recipes.cifar10_paper("resnet56").schedule.warmup_error == 0


def test_the_paper_recipe_holds_the_numbers_of_section_4_2():
    config = recipes.cifar10_paper("resnet20")
    assert (config.batch_size, config.steps) == (128, 64_000)
    assert (config.optimizer.learning_rate, config.optimizer.momentum, config.optimizer.weight_decay) == (
        0.1,
        0.9,
        1e-4,
    )
    assert (config.schedule.name, config.schedule.boundaries, config.schedule.factor) == ("step", (32_000, 48_000), 0.1)
    assert (config.data.pad, config.data.flip, config.data.normalization) == (4, True, "per_pixel_mean")
    assert config.model.bn_group_size == config.batch_size // 2  # Two GPUs.


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
        ("optimizer.learning_rate", "0.1", "float"),
        ("data_dir", 3, "str"),
    ],
)
def test_a_value_of_another_type_is_refused(key, value, type_name):
    assert refusal({key: value}) == f"config.{key} is {value!r}; it must be of type {type_name}"


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer.learning_rate": 1},
        {"model.width": 8, "model.remat": True, "model.dtype": "bfloat16"},
        {"model.stage_sizes": [1, 2]},
        {"data_dir": "/data"},
        {"data.normalization": "channel", "data.mean": [0.5, 0.5, 0.5]},
        {"schedule.warmup_error": 0.5, "schedule.warmup_learning_rate": 0.05},
    ],
)
def test_values_of_the_right_kind_are_accepted(values):
    validate(changed(values), num_devices=1)


@pytest.mark.parametrize(
    "key",
    [
        "steps",
        "batch_size",
        "eval_batch_size",
        "steps_per_dispatch",
        "log_every",
        "eval_every",
        "checkpoint_every",
        "keep_checkpoints",
    ],
)
@pytest.mark.parametrize("value", [0, -100])
def test_a_count_below_one_is_refused(key, value):
    assert refusal({key: value}) == f"config.{key} is {value}; it must be at least 1"


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
    ],
)
def test_a_number_that_is_negative_or_not_finite_is_refused(key, value):
    assert refusal({key: value}) == f"config.{key} is {value!r}; it must be a finite number, 0 or above"


def test_a_batch_that_the_devices_cannot_share_is_refused_with_one_they_can():
    message = refusal({"batch_size": 100}, num_devices=8)
    assert "config.batch_size 100 is not divisible by the 8 devices" in message and message.endswith("use 96")
    validate(changed({"batch_size": 96}), num_devices=8)
    assert refusal({"batch_size": 3}, num_devices=8).endswith("use 8")


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


def test_every_key_is_read_by_the_program(tmp_path, monkeypatch):
    tiny = {
        "model.stage_sizes": (1,),
        "model.width": 4,
        "data.name": "digits",
        "steps": 2,
        "batch_size": 8,
        "log_every": 1,
        "eval_every": 2,
        "checkpoint_every": 2,
    }
    read = keys_read(changed(tiny), tmp_path / "step", monkeypatch)
    # What depends on a setting is not read without it, which also shows that the recorder does not take in everything.
    assert not read & {"data.mean", "data.std", "data_dir"}
    cosine = {"schedule.name": "cosine", "data.normalization": "channel"}
    other = keys_read(changed(tiny | cosine), tmp_path / "cosine", monkeypatch)
    assert not other & {"schedule.boundaries", "schedule.factor", "data_dir"}
    read |= other

    # Only data sets that must be prepared have a folder.
    config = changed({"data_dir": str(tmp_path / "nothing")})
    with monkeypatch.context() as patch:
        recorder = ReadRecorder(config, patch)
        patch.setattr(importlib.util, "find_spec", lambda name: None)  # No TensorFlow, or it would be prepared.
        with pytest.raises(UserError, match="nothing"):
            load_dataset(config)
        read |= recorder.keys

    assert set(flatten(recipes.base())) - read == set()
