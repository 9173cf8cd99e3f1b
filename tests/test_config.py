"""The schema of a run: what it refuses and how it says so, overrides, and the comparison of two configs."""

import json

import pytest
from pydantic import ValidationError

from resnet_jax import config as schema
from resnet_jax.config import Config, checked, flatten, from_flags, override, read_config, refuse_change, to_json
from resnet_jax.data.transforms import Flip, Transforms
from resnet_jax.errors import UserError
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.schedules import Cosine

PHOTOGRAPHS = {"data.kind": "photographs"}


def changed(values, config=None):
    return override(Config() if config is None else config, values)


def refusal(values):
    with pytest.raises(UserError) as caught:
        changed(values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("step", "steps"),
        ("optimizer.learning_rat", "optimizer.learning_rate"),
        ("model.widht", "model.width"),
        ("model.atention", "model.attention"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_one(key, nearest):
    assert refusal({key: 1}) == f"unknown config key config.{key}; did you mean config.{nearest}?"


@pytest.mark.parametrize("field", ["antialias", "cardinality", "norm", "activation"])
def test_a_field_of_networks_that_is_no_key_is_said_to_be_the_named_network_s(field):
    message = refusal({f"model.{field}": "se"})
    assert message.startswith(f"config.model.{field} is no key: {field} is the named network's own; name a network")
    assert refusal({"model.num_classes": 10}).endswith("num_classes is that of the data")


def test_an_unknown_key_like_no_other_is_named_too():
    assert refusal({"zzzzzzzzzz": 1}).startswith("unknown config key config.zzzzzzzzzz; ")


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("seed", True, "an integer"),
        ("batch_size", 0.5, "an integer"),
        ("model.name", 20, "text"),
        ("model.width", "8", "an integer"),
        ("model.stage_sizes", 3, "a tuple"),
        ("transforms.flip.probability", "often", "a number"),
        ("model.remat", 1, "True or False"),
        ("ema_decay", "no", "a number"),
        ("optimizer.learning_rate", "0.1", "a number"),
        ("data_dir", 3, "text"),
    ],
)
def test_a_value_of_another_type_is_refused(key, value, kind):
    message = refusal({key: value})
    assert message.startswith(f"config.{key} is {value!r}; it must be {kind}")


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer.learning_rate": 1},
        {"model.width": 8, "model.remat": True, "model.dtype": "bfloat16"},
        {"model.stage_sizes": [1, 2]},
        {"data_dir": "/data"},
        {"normalization.name": "channel", "normalization.mean": [0.5, 0.5, 0.5]},
        {"schedule.hold.error": 0.5, "schedule.hold.learning_rate": 0.05},
        {"schedule.name": "plateau", "schedule.patience": 1, "schedule.factor": 0.5},
        {"task.label_smoothing": 0.1, "ema_decay": 0.9999, "bn_recompute_batches": 10, "accumulate_steps": 4},
        {"steps": "90 epochs", "eval_every": "1 epoch", "schedule.warmup_steps": "0.5 epochs"},
        {**PHOTOGRAPHS, "data.max_unreadable": 0, "data.threads": 4, "data.workers": 2},
        {**PHOTOGRAPHS, "data.crop.shorter_side": [224, 224], "data.eval_shorter_side": 224},
        {**PHOTOGRAPHS, "data.crop.name": "random_resized", "data.crop.area": (1, 1.0)},
        {**PHOTOGRAPHS, "data.crop.name": "random_resized", "data.crop_size": 288, "data.eval_shorter_side": 320},
    ],
)
def test_values_of_the_right_kind_are_accepted(values):
    found = flatten(changed(values))
    for key, value in values.items():
        assert found[key] == (tuple(value) if isinstance(value, list) else value)


COUNTS = ["batch_size", "accumulate_steps", "eval_batch_size", "steps_per_dispatch", "keep_checkpoints"]


@pytest.mark.parametrize("key", [*COUNTS, "data.crop_size", "data.eval_shorter_side"])
@pytest.mark.parametrize("value", [0, -100])
def test_a_count_below_one_is_refused(key, value):
    assert refusal({**PHOTOGRAPHS, key: value}).startswith(f"config.{key} is {value}; it must be at least 1")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("steps", -1),
        ("steps", "many"),
        ("steps", "-3 epochs"),
        ("log_every", 2.5),
        ("data.holdout", -1),
        ("optimizer.learning_rate", -0.1),
        ("optimizer.learning_rate", float("nan")),
        ("optimizer.learning_rate", float("inf")),
        ("optimizer.momentum", -0.9),
        ("optimizer.weight_decay", float("inf")),
        ("schedule.hold.error", -0.5),
        ("schedule.hold.error", 1.5),
        ("bn_recompute_batches", -1),
        ("transforms.random_crop.pad", -4),
        ("transforms.pca_color.std", float("nan")),
        ("ema_decay", 1.0),
        ("task.label_smoothing", 1.5),
        ("model.bn_momentum", 1.0),
    ],
)
def test_a_number_out_of_range_is_refused(key, value):
    assert refusal({key: value}).startswith(f"config.{key} is {value!r}; it must be ")


@pytest.mark.parametrize(
    ("key", "value"),
    [("schedule.name", "linear"), ("optimizer.decay", "none"), ("data.kind", "sounds"), ("normalization.name", "no"),
     ("model.shortcut", "D"), ("model.dtype", "float16")],
)  # fmt: skip
def test_a_choice_that_there_is_not_is_named_with_those_there_are(key, value):
    message = refusal({key: value})
    assert message.startswith(f"config.{key} is {value!r}; it must be one of ")
    assert "'" in message.partition("one of ")[2]


@pytest.mark.parametrize(
    ("values", "key", "picked"),
    [
        ({"schedule.name": "cosine", "schedule.boundaries": (1,)}, "schedule.boundaries", "cosine"),
        ({"schedule.name": "constant", "schedule.factor": 0.5}, "schedule.factor", "constant"),
        ({"schedule.patience": 3}, "schedule.patience", "step"),
        ({"normalization.mean": (0.5, 0.5, 0.5)}, "normalization.mean", "per_pixel_mean"),
        ({"data.crop_size": 32}, "data.crop_size", "resident"),
        ({**PHOTOGRAPHS, "data.holdout": 10}, "data.holdout", "photographs"),
        ({**PHOTOGRAPHS, "data.crop.area": (0.5, 1.0)}, "data.crop.area", "scale_jitter"),
        ({**PHOTOGRAPHS, "data.name": "repeats", "data.holdout": 10}, "data.holdout", "photographs"),
    ],
)
def test_a_key_that_the_chosen_part_does_not_have_is_named_with_the_part(values, key, picked):
    message = refusal(values)
    assert message.startswith(f"config.{key} is set, but ") and f"{picked!r} has no such key" in message


def test_another_part_keeps_the_keys_that_both_have_and_loses_the_others():
    config = changed({"schedule.boundaries": (1, 2), "schedule.warmup_steps": 5})
    cosine = override(config, {"schedule.name": "cosine"})
    assert cosine.schedule == Cosine(warmup_steps=5)
    assert override(cosine, {"schedule.name": "step"}).schedule.warmup_steps == 5


def test_an_optional_key_is_unset_by_none_and_no_key_means_the_model_s_own():
    config = changed({"model.bn_group_size": 64, "model.shortcut": "none"})
    assert config.model.overrides == {"bn_group_size": 64, "shortcut": "none"}
    assert override(config, {"model.bn_group_size": None}).model.overrides == {"shortcut": "none"}
    assert flatten(Config()).keys().isdisjoint({"model.bn_group_size", "model.shortcut"})


def test_a_transform_that_is_off_may_have_no_other_setting():
    assert changed({"transforms.flip.probability": 0.5}).transforms.flip.on
    assert not Config().transforms.flip.on


def test_a_section_is_not_a_value():
    assert "config.model is a section" in refusal({"model": "resnet20"})


def test_a_part_of_one_kind_may_be_called_as_a_key_is():
    assert refusal({"model.name": "width", "model.width": 0}).startswith(
        "config.model.width is 0; it must be at least 1"
    )
    assert "number of steps, or of epochs" in refusal({"steps": f"{'1' * 400} epochs"})


def test_configs_cannot_be_changed_and_a_wrong_one_cannot_be_made():
    with pytest.raises(ValidationError):
        Config().steps = 3
    with pytest.raises(ValidationError):
        Config(batch_size=0)


def test_a_part_that_a_stored_config_cannot_name_is_refused_and_not_replaced():
    class Clipped(SGD):
        limit: float = 1.0

    class Tilted(Flip):
        angle: float = 5.0

    with pytest.raises(ValidationError, match="optimizer is a Clipped, which a stored config cannot name"):
        Config(optimizer=Clipped(limit=0.5))
    with pytest.raises(ValidationError, match="flip is a Tilted, which a stored config cannot name"):
        Config(transforms=Transforms(flip=Tilted()))


# The command line.


def test_the_command_line_shows_every_key_of_every_part_as_text():
    flags = schema.to_flags(Config())
    assert flags.schedule.name == "step" and flags.schedule.boundaries == "(32000, 48000)"
    assert flags.schedule.patience is None and flags.data.crop.area is None and flags.model.width is None
    assert flags.get_type("seed") is str and flags.model.get_type("width") is str


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ({"steps": "7"}, {"steps": 7}),
        ({"steps": "90 epochs"}, {"steps": "90 epochs"}),
        ({"model.stage_sizes": "(2, 1)"}, {"model.stage_sizes": (2, 1)}),
        ({"model.remat": "true"}, {"model.remat": True}),
        ({"data_dir": "2024"}, {"data_dir": "2024"}),
        ({"optimizer.learning_rate": "1e-3"}, {"optimizer.learning_rate": 1e-3}),
        ({"schedule.name": "plateau", "schedule.patience": "3"}, {"schedule.name": "plateau", "schedule.patience": 3}),
    ],
)
def test_text_becomes_the_value_that_it_stands_for(given, values):
    found = flatten(from_flags(Config(), given))
    assert {key: found[key] for key in values} == values


def test_text_that_stands_for_no_value_is_refused_as_it_was_written():
    with pytest.raises(UserError, match=r"config\.batch_size is 'many'; it must be an integer"):
        from_flags(Config(), {"batch_size": "many"})


# Two configs.


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "config.json"

    def store(config):
        path.write_text(to_json(config))
        return path

    return store


def test_what_is_stored_is_read_as_it_was(stored):
    config = changed({"model.stage_sizes": (1, 2), "schedule.name": "cosine", **PHOTOGRAPHS, "steps": "3 epochs"})
    assert read_config(stored(config)) == config
    refuse_change(config, stored(config))


def test_a_changed_config_is_refused_with_each_key_and_both_values(stored, tmp_path):
    path = stored(Config())
    with pytest.raises(UserError) as caught:
        refuse_change(changed({"seed": 7, "transforms.flip.probability": 0.5, "model.stage_sizes": (1, 1)}), path)
    message = str(caught.value)
    for change in ("config.seed (was 0, now 7)", "config.transforms.flip.probability (was 0.0, now 0.5)"):
        assert change in message
    assert "config.model.stage_sizes (was 'unset', now (1, 1))" in message
    assert message.count("(was ") == 3
    assert str(tmp_path) in message and "--allow_config_change" in message


def test_a_key_that_is_newer_than_the_run_has_its_default(tmp_path):
    path = tmp_path / "config.json"
    values = json.loads(to_json(Config()))
    del values["ema_decay"]
    path.write_text(json.dumps(values))
    refuse_change(Config(), path)


def test_a_config_of_another_version_is_named(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"label_smoothing": 0.1}))
    with pytest.raises(UserError, match=r"of another version of this program \(unknown config key"):
        read_config(path)


def test_where_the_data_lie_and_how_many_steps_are_in_a_call_is_no_change(stored):
    refuse_change(changed({"data_dir": "elsewhere", "steps_per_dispatch": 100}), stored(Config()))


def test_sections_limit_the_comparison(stored):
    path = stored(Config())
    refuse_change(changed({"steps": 5, "optimizer.momentum": 0.5}), path, sections=("model.", "data."))
    with pytest.raises(UserError, match=r"config\.data\.holdout \(was 0, now 2\)"):
        refuse_change(changed({"steps": 5, "data.holdout": 2}), path, sections=("model.", "data."))


def test_no_stored_config_is_no_change(tmp_path):
    refuse_change(Config(), tmp_path / "config.json")


@pytest.mark.parametrize("content", [b"", b'{"seed": 0', b"[1]", b"3", b"\xff\xfe"])
def test_a_damaged_stored_config_is_a_user_error_that_names_it(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is missing or damaged"):
        refuse_change(Config(), path)


def test_nested_values_make_a_config_and_a_fault_in_them_is_named():
    assert checked({"model": {"name": "resnet56"}}).model.name == "resnet56"
    with pytest.raises(UserError, match=r"config\.model\.width is 0; it must be at least 1"):
        checked({"model": {"width": 0}})
