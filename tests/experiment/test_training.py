"""Whole runs from a config: on data in memory, resumed, and refused."""

import json

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax.config import Config, override, to_json
from resnet_jax.errors import UserError
from resnet_jax.experiment.networks import load_run
from resnet_jax.experiment.scoring import score
from resnet_jax.experiment.training import _normalization, train

TINY = {
    "model.stage_sizes": (1,),
    "model.width": 4,
    "batch_size": 16,
    "steps": 6,
    "log_every": 2,
    "eval_every": 3,
    "checkpoint_every": 3,
    "optimizer.learning_rate": 0.05,
    "schedule.name": "constant",
}


def tiny(**changes):
    return override(Config(), TINY | {key.replace("__", "."): value for key, value in changes.items()})


def arrays(channels=(), size=(10, 12), count=48, classes=3):
    """Images whose brightness tells their class."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    brightness = 80 * labels.reshape(-1, *[1] * (len(size) + len(channels)))
    images = rng.integers(0, 60, (count, *size, *channels)) + brightness
    return images.astype(np.uint8), labels


@pytest.mark.parametrize("channels", [(), (1,), (3,)], ids=["grey", "one channel", "RGB"])
@pytest.mark.extensive
def test_arrays_in_memory_are_trained_on_scored_and_loaded(tmp_path, channels):
    images, labels = arrays(channels)
    data = resnet_jax.ResidentDataset.from_arrays(images, labels, images[:12], labels[:12], ["dark", "grey", "bright"])
    config = tiny()
    state = train(config, tmp_path, data=data)
    assert int(state.step) == 6
    network = load_run(tmp_path)
    assert network.class_names == ["dark", "grey", "bright"]
    record = score(config, [tmp_path], data=data).record
    assert (record["num_examples"], record["data"]) == (12, "arrays") and "top5_error" not in record
    for use in (lambda: score(config, [tmp_path]), lambda: train(config, tmp_path)):
        with pytest.raises(UserError, match=r"holds a run on data that its program passed"):
            use()
    logits = network.model.apply(network.variables, network.normalize(data.splits["test"].images), train=False)
    assert record["top1_error"] == round(100 * np.mean(np.argmax(logits, axis=1) != labels[:12]), 4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(workdir, config, final state) of a run on digits in one piece."""
    workdir = tmp_path_factory.mktemp("run") / "digits"
    config = tiny(data__name="digits", transforms__random_crop__pad=2, ema_decay=0.9)
    return workdir, config, jax.device_get(train(config, workdir))


@pytest.mark.extensive
def test_a_run_leaves_what_tells_how_it_came_about(trained):
    workdir, _, _ = trained
    assert {"config.json", "environment.json", "class_names.json", "metrics.jsonl", "errors.png"} <= {
        path.name for path in workdir.iterdir()
    }
    assert json.loads((workdir / "config.json").read_text())["model"]["width"] == 4


@pytest.mark.extensive
def test_a_run_in_two_parts_ends_with_the_same_bits(trained, tmp_path):
    _, config, whole = trained
    train(override(config, {"steps": 3}), tmp_path)
    parts = jax.device_get(train(config, tmp_path, allow_config_change=True))
    jax.tree.map(np.testing.assert_array_equal, parts, whole)


def test_another_config_is_refused_and_nothing_is_changed(trained):
    workdir, config, _ = trained
    before = (workdir / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"config\.seed \(was 0, now 1\).*--allow_config_change"):
        train(override(config, {"seed": 1}), workdir)
    assert (workdir / "config.json").read_bytes() == before


def test_as_many_steps_in_a_call_as_would_change_a_run_are_refused(tmp_path):
    images, labels = arrays()
    data = resnet_jax.ResidentDataset.from_arrays(images, labels, images[:12], labels[:12])
    config = tiny(steps="2 epochs", eval_every="1 epoch", checkpoint_every="1 epoch")  # Of three steps.
    (tmp_path / "config.json").write_text(to_json(config))
    said = r"is '1 epoch', which is 3 steps in this run and .* to 4 by config\.steps_per_dispatch=2; set that to 1, or"
    with pytest.raises(UserError, match=said):
        train(override(config, {"steps_per_dispatch": 2}), tmp_path, data=data)


def test_a_normalisation_that_was_taken_over_is_not_replaced(tmp_path):
    (tmp_path / "init.json").write_text('{"normalization": "weights"}')
    with pytest.raises(UserError, match=r"normalization\.npz is missing or damaged .*; restore it"):
        _normalization(tiny(), None, tmp_path, begun=True, allow_config_change=False, of_weights=None)


def test_other_classes_are_refused(trained):
    workdir, config, _ = trained
    images, labels = arrays((3,), (32, 32))
    data = resnet_jax.ResidentDataset.from_arrays(images, labels, images, labels)
    with pytest.raises(UserError, match="other classes"):
        train(config, workdir, data=data)


def test_what_was_exported_is_not_trained_on_and_a_path_for_checkpoints_is_checked_first(trained, tmp_path):
    _, config, _ = trained
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"exported is an exported network; name another --workdir.*init\.path="):
        train(config, tmp_path / "exported")
    with pytest.raises(UserError, match="which has \\[ in it; use another path"):
        train(config, tmp_path / "[run]")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["exported", "weights.safetensors"]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"batch_size": 64}, "config.batch_size 64 is more than the 48 training images"),
        ({"model.name": "resnet21"}, "unknown model"),
        ({"schedule.warmup_steps": "5 epochs"}, "config.schedule.warmup_steps"),
    ],
)
def test_what_cannot_be_trained_makes_no_workdir(tmp_path, changes, fault):
    images, labels = arrays((3,))
    data = resnet_jax.ResidentDataset.from_arrays(images, labels, images, labels)
    with pytest.raises(UserError, match=fault):
        train(override(tiny(), changes), tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()
