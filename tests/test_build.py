"""From a config to the parts of a run: what keys must agree in, durations, and the parts that keys make."""

from itertools import product

import jax.numpy as jnp
import pytest

from resnet_jax import build
from resnet_jax.config import Config, override
from resnet_jax.errors import UserError
from resnet_jax.kernels import PLAIN, divided, fast_kernels
from resnet_jax.train.loop import LoopSettings
from resnet_jax.train.step import StepSettings


def refusal(values, num_devices=1):
    with pytest.raises(UserError) as caught:
        build.check(override(Config(), values), num_devices)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_batch_that_the_devices_cannot_share_is_refused_with_one_they_can():
    message = refusal({"batch_size": 100}, num_devices=8)
    assert "config.batch_size 100 is not divisible by the 8 devices" in message and message.endswith("use 96")
    build.check(override(Config(), {"batch_size": 96}), num_devices=8)
    assert refusal({"batch_size": 3}, num_devices=8).endswith("use 8")


def test_a_part_of_a_batch_that_the_devices_cannot_share_is_refused_with_a_batch_that_they_can():
    message = refusal({"batch_size": 96, "accumulate_steps": 5}, num_devices=8)
    assert "config.batch_size 96 is not divisible by the 8 devices times 5 accumulate_steps" in message
    assert message.endswith("use 80")


def test_batch_norm_groups_must_make_up_each_part_of_a_batch():
    accepted = 0
    for batch_size, devices, parts, group in product((24, 48, 64), (1, 2, 8), (1, 2, 3, 4), (2, 6, 8, 12, 16, 24, 100)):
        values = {"batch_size": batch_size, "accumulate_steps": parts, "model.bn_group_size": group}
        config = override(Config(), values)
        shared = batch_size % (devices * parts) == 0
        # A whole batch below the size of a group is one group; a part would be a smaller group than one asks for.
        grouped = batch_size // parts % group == 0 or (parts == 1 and batch_size < group)
        if shared and grouped:
            build.check(config, devices)
            accepted += 1
        else:
            with pytest.raises(UserError, match=r"is not (divisible by|a multiple of)"):
                build.check(config, devices)
    assert 30 < accepted < 200


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"model.name": "resnet21"}, "unknown model 'resnet21'; did you mean"),
        ({"model.stride_placement": "v1.5"}, "stride_placement"),
        ({"model.name": "vgg16", "model.shortcut": "A"}, "shortcut"),
        ({"model.name": "vgg16", "bn_recompute_batches": 5}, "vgg16 has no batch normalisation"),
        ({"data.name": "digits", "data_dir": "/data"}, "the digits are inside scikit-learn"),
    ],
)
def test_keys_that_do_not_go_together_are_named(values, fault):
    assert fault in refusal(values)


@pytest.mark.parametrize("num_train", [50_000, 1_281_167])
def test_durations_are_steps_or_epochs_of_the_data_set(num_train):
    config = override(Config(), {"steps": "90 epochs", "eval_every": "1 epoch", "log_every": 7, "batch_size": 1000})
    found = build.intervals(config, num_train)
    epoch = num_train // 1000
    assert found == (90 * epoch, 7, epoch, 1000, epoch)


def test_durations_in_epochs_are_rounded_to_whole_calls_and_those_in_steps_must_be_whole():
    config = override(Config(), {"steps": "1 epoch", "batch_size": 10, "steps_per_dispatch": 4, "log_every": 4})
    assert build.intervals(config, 143)[:3] == (16, 4, 1000)
    with pytest.raises(UserError, match=r"config\.log_every 6 is not a multiple of config\.steps_per_dispatch 4"):
        build.intervals(override(config, {"log_every": 6}), 143)


def test_a_batch_of_more_than_all_images_is_refused_with_one_that_fits():
    with pytest.raises(UserError, match=r"batch_size 128 is more than the 45 training images; .*=32$"):
        build.intervals(Config(), 45)


@pytest.mark.parametrize("key", ["steps", "log_every", "eval_every", "checkpoint_every"])
@pytest.mark.parametrize("nothing", [0, "0 epochs", "0.0 epochs"])
def test_an_interval_of_nothing_is_refused(key, nothing):
    with pytest.raises(UserError, match=rf"config\.{key} is '?{nothing}'?; it must be at least 1"):
        override(Config(), {key: nothing})
    assert build.intervals(override(Config(), {key: "0.0001 epochs"}), 50_000)._asdict()[key] == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("width", 8),
        ("stage_sizes", (1, 2)),
        ("dtype", "bfloat16"),
        ("zero_init_last_bn", True),
        ("remat", True),
        ("scan_blocks", True),
    ],
)
def test_each_model_key_sets_its_field(key, value):
    default = getattr(build.make_model(Config(), 10), key)
    field = getattr(build.make_model(override(Config(), {f"model.{key}": value}), 10), key)
    assert field == (jnp.bfloat16 if key == "dtype" else value)
    assert field != default


def test_networks_of_programs_have_the_kernels_of_their_mesh(one_device, eight_devices):
    config = override(Config(), {"model.name": "resnext50_32x4d"})
    fast = [fast_kernels("cpu", 1), divided(fast_kernels("cpu", 8), eight_devices), PLAIN]
    found = [build.make_model(config, 10, mesh).kernels for mesh in (one_device, eight_devices, None)]
    assert found == fast and len(set(found)) == 3


def test_the_learning_rate_scales_with_the_batch_where_it_is_stated_for_one():
    config = override(Config(), {"batch_size": 1024, "optimizer.learning_rate_batch": 256})
    schedule = build.make_schedule(config, build.intervals(config, 50_000))
    assert float(schedule(jnp.int32(0))) == pytest.approx(0.4)


def test_each_key_of_the_step_and_of_the_loop_reaches_it():
    values = {
        "seed": 3, "accumulate_steps": 2, "ema_decay": 0.9, "ema_every": 4, "ema_start": 60, "batch_size": 40,
        "optimizer.sam_radius": 0.05, "schedule.hold.error": 0.8, "schedule.hold.learning_rate": 0.02,
        "on_nonfinite": "skip", "steps": 90, "steps_per_dispatch": 3, "log_every": 6, "eval_every": 12,
        "checkpoint_every": 15, "keep_checkpoints": 5, "bn_recompute_batches": 7,
    }  # fmt: skip
    config = override(Config(), values)
    build.check(config, 1)
    found = build.intervals(config, 50_000)
    assert build.step_settings(config, found) == StepSettings(3, 2, 0.9, 4, 60, 0.05, 6, 0.8, 0.02, True)
    assert build.loop_settings(config, found) == LoopSettings(90, 40, 3, 6, 12, 15, 5, 7)
    # None of these is a default, so that one that is not handed on would be seen.
    off = override(Config(), {"on_nonfinite": "stop"})
    assert not build.step_settings(off, build.intervals(off, 50_000)).skip_nonfinite


def test_an_average_that_is_off_has_no_settings():
    for values in ({"ema_every": 2}, {"ema_start": "1 epoch"}):
        assert "is set but not read, because config.ema_decay is 0" in refusal(values)
    config = override(Config(), {"ema_decay": 0.9, "ema_every": 2, "ema_start": "3 epochs"})
    build.check(config, 1)
    settings = build.step_settings(config, build.intervals(config, 1280))
    assert (settings.ema_every, settings.ema_start) == (2, 30)


def test_images_that_grow_between_steps_are_refused_with_several_steps_in_a_call():
    values = {"data.kind": "photographs", "data.progressive.start_size": 96, "steps_per_dispatch": 2}
    assert "the images of config.data have different sizes from step to step; use 1" in refusal(values)
    build.check(override(Config(), values | {"steps_per_dispatch": 1}), 1)


def test_batches_are_divided_as_their_mixing_is_drawn_for():
    mixed = {"batch_size": 48, "transforms.mixing.mixup_alpha": 0.2}
    with pytest.raises(
        UserError, match=r"batch_size 48 is not a multiple of config\.transforms\.mixing\.draw 32; change"
    ):
        build.check(override(Config(), mixed | {"transforms.mixing.draw": 32}), 1)
    for draw in (16, 64, "batch"):
        build.check(override(Config(), mixed | {"transforms.mixing.draw": draw}), 1)
