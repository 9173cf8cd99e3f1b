"""Runs that start from weights: a workdir, PyTorch files; the head; normalisation; and resuming without them."""

import json
import shutil

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax import build, parallel
from resnet_jax.config import override
from resnet_jax.data.normalization import Normalization
from resnet_jax.errors import UserError
from resnet_jax.experiment.initial import RANDOM, check_start, fitted, read_start
from resnet_jax.experiment.training import train
from resnet_jax.models.stacking import unstack_blocks

DIGITS = [str(digit) for digit in range(10)]
SHAPE = (32, 32, 3)


def start_of(config, class_names=DIGITS, shape=SHAPE):
    model = build.make_model(config, len(class_names))
    return read_start(config, model, class_names, shape, parallel.data_mesh(jax.devices()[:2]))


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(expected))
    assert jax.tree.structure(found) == jax.tree.structure(expected)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, digits_config, save_run):
    """(workdir, its variables by step) of a run with three blocks in a stage."""
    folder = tmp_path_factory.mktemp("runs") / "before"
    return folder, save_run(folder, digits_config(**{"model.stage_sizes": (3,)}), {1: 2.0, 2: 3.0})


def tuned(digits_config, path, **changes):
    return digits_config(**{"model.stage_sizes": (3,), "init.name": "weights", "init.path": str(path)} | changes)


def test_without_init_a_run_starts_at_random(digits_config):
    assert start_of(digits_config()) is RANDOM


@pytest.mark.parametrize("which", ["latest", "best"])
def test_a_workdir_gives_exactly_its_variables_and_its_normalisation(workdir, digits_config, which):
    folder, used = workdir
    start = start_of(tuned(digits_config, folder, **{"init.head": "keep", "init.checkpoint": which}))
    assert_equal(start.variables, used[1 if which == "best" else 2])
    np.testing.assert_array_equal(start.normalization.std, np.full(3, 0.3, np.float32))
    assert start.record["kind"] == "workdir" and start.record["path"] == str(folder.resolve())


def test_blocks_may_be_scanned_although_the_weights_were_not(workdir, digits_config):
    start = start_of(tuned(digits_config, workdir[0], **{"model.scan_blocks": True, "init.head": "keep"}))
    assert "stage1_blocks" in start.variables["params"]
    assert_equal(unstack_blocks(start.variables), workdir[1][2])


@pytest.mark.extensive
def test_a_new_head_is_that_of_the_run_s_own_seed(workdir, digits_config, tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (32, 32, 32, 3), dtype=np.uint8), np.arange(32) % 4
    data = resnet_jax.ResidentDataset.from_arrays(images, labels, images[:8], labels[:8])
    # The one step, with a rate of 0, changes no parameter.
    still = {"optimizer.learning_rate": 0.0, "schedule.name": "constant", "optimizer.weight_decay": 0.0}
    config = tuned(digits_config, workdir[0], steps=1, batch_size=16, **still)
    after = jax.device_get(train(config, tmp_path / "tuned", data=data).params)
    fresh = jax.device_get(train(override(config, {"init.name": "none"}), tmp_path / "fresh", data=data).params)
    assert_equal(after["head"], fresh["head"])
    body = {name: leaves for name, leaves in workdir[1][2]["params"].items() if name != "head"}
    assert_equal({name: leaves for name, leaves in after.items() if name != "head"}, body)
    assert json.loads((tmp_path / "tuned" / "init.json").read_text())["normalization"] == "weights"
    stored = Normalization.load(tmp_path / "tuned" / "normalization.npz")
    np.testing.assert_array_equal(stored.mean, np.full(3, 0.4, np.float32))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_of_pytorch_weights_gives_what_was_saved(workdir, digits_config, tmp_path, suffix):
    model = build.make_model(digits_config(**{"model.stage_sizes": (3,)}), 10)
    path = tmp_path / f"weights{suffix}"
    resnet_jax.save_torch(workdir[1][2], path, model=model)
    kept = start_of(tuned(digits_config, path, **{"init.head": "keep"}))
    assert_equal(kept.variables, workdir[1][2])
    assert kept.normalization is None and len(kept.record["sha256"]) == 64
    new = start_of(tuned(digits_config, path), class_names=["cat", "dog"])
    assert "head" not in new.variables["params"]
    assert_equal(new.variables["batch_stats"], workdir[1][2]["batch_stats"])


def test_a_mean_image_of_another_size_is_averaged_and_any_for_photographs_of_any_size():
    mean = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    normalization = Normalization(mean, np.ones(3, np.float32))
    assert fitted(normalization, (2, 2, 3)) is normalization
    for averaged in (fitted(normalization, (4, 4, 3)), fitted(normalization, (2, 2, 3), any_size=True)):
        np.testing.assert_array_equal(averaged.mean, [4.5, 5.5, 6.5])


def test_images_of_one_channel_take_the_sum_of_the_stem_s_kernel_and_their_own_normalisation(workdir, digits_config):
    assert fitted(Normalization(np.zeros(3, np.float32), np.ones(3, np.float32)), (32, 32, 1)) is None
    for scanned in (False, True):
        config = tuned(digits_config, workdir[0], **{"init.head": "keep", "model.scan_blocks": scanned})
        start = start_of(config, shape=(32, 32, 1))
        variables, expected = unstack_blocks(jax.device_get(start.variables)), jax.device_get(workdir[1][2])
        kernel = variables["params"].pop("stem_conv")["kernel"]
        whole = expected["params"]["stem_conv"]["kernel"]
        np.testing.assert_allclose(kernel, whole.sum(axis=2, keepdims=True), rtol=1e-6)
        body = {name: leaves for name, leaves in expected["params"].items() if name != "stem_conv"}
        assert_equal(variables, expected | {"params": body})
        assert start.normalization is None and start.record["normalization"] == "config"


def error_of(config, class_names=DIGITS):
    with pytest.raises(UserError) as caught:
        start_of(config, class_names)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_head_that_does_not_fit_is_a_user_error_that_names_the_fix(workdir, digits_config):
    keep = tuned(digits_config, workdir[0], **{"init.head": "keep"})
    assert error_of(keep, ["cat", "dog"]).endswith("for 10 classes and the data have 2; use --config.init.head=new")
    renamed = error_of(keep, [*DIGITS[:9], "nine"])
    assert "'9'" in renamed and "'nine'" in renamed and renamed.endswith("use --config.init.head=new")


def test_weights_that_do_not_fit_are_a_user_error(workdir, digits_config, tmp_path):
    assert "does not fit config.model resnet20" in error_of(tuned(digits_config, workdir[0], **{"model.width": 8}))
    missing = tuned(digits_config, tmp_path / "none.pth")
    assert "no such file of weights or workdir" in error_of(missing)
    (tmp_path / "some.pth").write_bytes(b"")
    best = tuned(digits_config, tmp_path / "some.pth", **{"init.checkpoint": "best"})
    assert error_of(best).endswith("has one set of weights; use --config.init.checkpoint=latest")
    (tmp_path / "empty").mkdir()
    assert error_of(tuned(digits_config, tmp_path / "empty")).startswith("there is no run in")


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"model.name": "plain20"}, "set --config.model.name=resnet20"),
        ({"model.name": "resnet32", "model.shortcut": "none"}, "model.name=resnet20 --config.model.shortcut=None"),
        ({"model.stage_sizes": (2,)}, "set '--config.model.stage_sizes=(3,)'"),
    ],
    ids=["name", "field", "size"],
)
def test_weights_of_another_network_are_refused_with_the_keys_that_make_it_the_same(
    workdir, digits_config, changes, fix
):
    message = error_of(tuned(digits_config, workdir[0], **changes))
    assert "does not fit config.model" in message and message.endswith(fix)


def test_what_is_no_part_of_the_trained_function_may_differ(workdir, digits_config):
    same = {"model.name": "plain20", "model.shortcut": "A", "model.dtype": "bfloat16", "model.bn_group_size": 8}
    others = {"model.remat": True, "model.dropout": 0.1, "model.drop_path": 0.1, "model.zero_init_last_bn": True}
    start = start_of(tuned(digits_config, workdir[0], **{"init.head": "keep"}, **same, **others))
    assert_equal(start.variables, workdir[1][2])


@pytest.mark.extensive
def test_bottlenecks_must_stride_where_they_did(tmp_path, digits_config, save_run):
    ours = {"model.name": "resnet50", "model.stem": "cifar", "model.width": 2}
    save_run(tmp_path / "before", digits_config(**ours), {1: 2.0})
    changed = digits_config(**ours, **{"init.name": "weights", "init.path": str(tmp_path / "before")})
    start_of(override(changed, {"model.stride_placement": "v1"}))
    other = error_of(override(changed, {"model.stride_placement": "v1.5"}))
    assert other.endswith("set --config.model.stride_placement=v1")


def test_what_would_stay_random_cannot_be_frozen(digits_config, workdir):
    for stages in (("stem", "stage1"), ("head",)):
        frozen = {"finetune.freeze": stages}
        assert error_of(digits_config(**frozen)).startswith("layers are frozen, and config.init says of no weights")
        check_start(tuned(digits_config, workdir[0], **frozen, **{"init.head": "keep"}))
    check_start(tuned(digits_config, workdir[0], **{"finetune.freeze": ("stem",)}))
    with pytest.raises(UserError, match=r"freeze names the head, and config\.init\.head is 'new', .*init\.head=keep"):
        check_start(tuned(digits_config, workdir[0], **{"finetune.freeze": ("stem", "head")}))


def test_a_refused_start_leaves_no_workdir(workdir, digits_config, tmp_path):
    with pytest.raises(UserError, match="does not fit"):
        train(tuned(digits_config, workdir[0], **{"model.width": 8}), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


@pytest.mark.extensive
def test_a_run_resumes_without_its_weights_and_ends_with_the_same_bits(workdir, digits_config, tmp_path):
    copy = tmp_path / "weights"
    shutil.copytree(workdir[0], copy)
    changes = {
        "batch_size": 16, "steps": 6, "log_every": 2, "eval_every": 3, "checkpoint_every": 3, "ema_decay": 0.9,
        "schedule.name": "constant",
        "finetune.freeze": ("stem",), "finetune.layer_decay": 0.8, "finetune.head_rate": 5.0,
    }  # fmt: skip
    config = tuned(digits_config, copy, **changes)
    whole = jax.device_get(train(config, tmp_path / "whole"))
    train(override(config, {"steps": 3}), tmp_path / "parts")
    record = (tmp_path / "parts" / "init.json").read_text()
    shutil.rmtree(copy)
    parts = jax.device_get(train(config, tmp_path / "parts", allow_config_change=True))
    jax.tree.map(np.testing.assert_array_equal, parts, whole)
    assert (tmp_path / "parts" / "init.json").read_text() == record
    stored = Normalization.load(tmp_path / "parts" / "normalization.npz")
    np.testing.assert_array_equal(stored.std, np.full(3, 0.3, np.float32))
