"""Whole runs on the digits and on photographs: their files, and what an interruption leaves behind and what not."""

import json
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest

from resnet_jax import parallel, recipes
from resnet_jax.config import make_model, refuse_change
from resnet_jax.data.dataset import load_data
from resnet_jax.data.normalization import normalization
from resnet_jax.errors import UserError
from resnet_jax.evaluation.classify import error_rates, make_evaluator
from resnet_jax.evaluation.score import score as score_ensemble
from resnet_jax.train.bn_statistics import recompute_batch_stats
from resnet_jax.train.loop import train
from resnet_jax.train.signals import Stopped
from resnet_jax.train.workdir import locked
from resnet_jax.writers import MetricsWriter, read_metrics


def tiny_config(**settings):
    config = recipes.digits_quickstart()
    defaults = {"model.stage_sizes": (1,), "model.width": 4, "batch_size": 16, "steps": 20, "log_every": 5}
    config.update_from_flattened_dict({**defaults, "eval_every": 10, "checkpoint_every": 10, **settings})
    return config


def score(config, workdir, **options):
    """What a workdir's checkpoint scores."""
    record = score_ensemble(config, [workdir], **options).record
    return record


def assert_same_state(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def without_speed(records):
    return [{name: value for name, value in record.items() if name != "images_per_second"} for record in records]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workdir and the final state of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train(tiny_config(), workdir)


def stop_at(monkeypatch, step, signum):
    """Sends this process a signal when the record of ``step`` is written."""
    write = MetricsWriter.write

    def write_and_signal(self, record):
        write(self, record)
        if record["step"] == step:
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(MetricsWriter, "write", write_and_signal)


def test_a_run_leaves_the_whole_record(finished):
    workdir, state = finished
    assert state.step == 20
    records = read_metrics(workdir / "metrics.jsonl")
    assert [record["step"] for record in records] == [5, 10, 15, 20]
    assert all({"train_loss", "train_error", "learning_rate"} <= set(record) for record in records)
    assert ["test_error" in record for record in records] == [False, True, False, True]
    assert json.loads((workdir / "config.json").read_text())["steps"] == 20
    assert json.loads((workdir / "environment.json").read_text())["packages"]["jax"] == jax.__version__
    assert (workdir / "errors.png").read_bytes().startswith(b"\x89PNG")
    assert list((workdir / "tensorboard").iterdir())


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_to_the_same_bits(finished, tmp_path, monkeypatch, signum):
    with monkeypatch.context() as context:
        # The signal comes while the record of step 5 is written, that is after step 6: between two checkpoints.
        stop_at(context, 5, signum)
        with pytest.raises(Stopped) as stopped:
            train(tiny_config(), tmp_path)
    assert stopped.value.step == 6
    assert stopped.value.signum == signum
    workdir, state = finished
    assert_same_state(train(tiny_config(), tmp_path), state)
    assert without_speed(read_metrics(tmp_path / "metrics.jsonl")) == without_speed(
        read_metrics(workdir / "metrics.jsonl")
    )


def test_a_finished_run_stays_as_it_is(finished):
    workdir, state = finished
    before = {path: path.read_bytes() for path in workdir.glob("*.json*")}
    assert_same_state(train(tiny_config(), workdir), state)
    assert {path: path.read_bytes() for path in workdir.glob("*.json*")} == before and len(before) > 2


def test_another_config_is_refused_and_named(finished):
    workdir, _ = finished
    before = (workdir / "config.json").read_text()
    with pytest.raises(UserError, match=r"config\.steps \(was 20, now 30\).*--allow_config_change"):
        train(tiny_config(steps=30), workdir)
    assert (workdir / "config.json").read_text() == before


def test_another_config_is_taken_where_allowed_and_the_old_one_kept(tmp_path):
    train(tiny_config(steps=10), tmp_path)
    state = train(tiny_config(steps=15), tmp_path, allow_config_change=True)
    assert state.step == 15
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 15
    assert json.loads((tmp_path / "config.1.json").read_text())["steps"] == 10


def test_a_corrupt_newest_checkpoint_costs_only_the_steps_since_the_one_before(tmp_path, finished, capsys):
    train(tiny_config(), tmp_path)
    for path in (tmp_path / "checkpoints" / "20").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    workdir, state = finished
    assert_same_state(train(tiny_config(), tmp_path), state)
    assert "20 is corrupt" in capsys.readouterr().err
    assert without_speed(read_metrics(tmp_path / "metrics.jsonl")) == without_speed(
        read_metrics(workdir / "metrics.jsonl")
    )


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    train(tiny_config(steps=10), tmp_path)
    wild = tiny_config(steps=20, **{"optimizer.learning_rate": 1e30})
    with pytest.raises(UserError, match=r"not finite at step 11; .*learning_rate"):
        train(wild, tmp_path, allow_config_change=True)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()] == ["10"]
    assert score(wild, tmp_path, allow_config_change=True)["step"] == 10


def test_a_checkpoint_of_another_model_is_refused(finished):
    workdir, _ = finished
    other = tiny_config(**{"model.width": 8})
    with pytest.raises(UserError, match=r"config\.model\.width \(was 4, now 8\)"):
        score(other, workdir)
    with pytest.raises(UserError, match="is of another model: params/"):
        score(other, workdir, allow_config_change=True)


def test_a_refused_config_change_leaves_the_workdir_as_it_was(tmp_path):
    train(tiny_config(steps=10), tmp_path)
    before = (tmp_path / "config.json").read_text()
    for settings in ({"model.width": 8}, {"steps_per_dispatch": 3, "log_every": 3, "steps": 12}):
        intervals = {"eval_every": 12, "checkpoint_every": 12} if "steps" in settings else {}
        with pytest.raises(UserError, match=r"another model|not a multiple of config\.steps_per_dispatch"):
            train(tiny_config(**{"steps": 10, **settings, **intervals}), tmp_path, allow_config_change=True)
        assert (tmp_path / "config.json").read_text() == before


def test_weight_decay_of_other_parameters_goes_on_from_the_same_checkpoint(tmp_path):
    train(tiny_config(steps=10), tmp_path)
    other = tiny_config(steps=15, **{"optimizer.decay": "kernels"})
    assert train(other, tmp_path, allow_config_change=True).step == 15


def test_a_workdir_in_use_is_refused(tmp_path):
    with locked(tmp_path), pytest.raises(UserError, match="another process trains in"):
        train(tiny_config(), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_a_key_that_is_newer_than_the_run_had_its_default(finished):
    workdir, _ = finished
    path = workdir / "config.json"
    stored = path.read_text()
    older = json.loads(stored)
    del older["optimizer"]["decay"]
    path.write_text(json.dumps(older))
    refuse_change(tiny_config(), path)
    with pytest.raises(UserError, match=r"config\.optimizer\.decay \(was 'all', now 'kernels'\)"):
        refuse_change(tiny_config(**{"optimizer.decay": "kernels"}), path)
    path.write_text(stored)


def test_a_workdir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to workdir"):
        train(tiny_config(), tmp_path / "file" / "run")


def test_several_steps_a_dispatch_leave_the_same_record(tmp_path, finished):
    workdir, _ = finished
    train(tiny_config(steps_per_dispatch=5), tmp_path)
    records, expected = (read_metrics(Path(folder) / "metrics.jsonl") for folder in (tmp_path, workdir))
    assert [record["step"] for record in records] == [record["step"] for record in expected]
    for record, other in zip(records, expected, strict=True):
        np.testing.assert_allclose(record["train_loss"], other["train_loss"], rtol=1e-3)


def test_evaluations_and_checkpoints_between_two_logged_steps_are_recorded_too(tmp_path, finished):
    workdir, state = finished
    other = train(tiny_config(log_every=8, eval_every=10, checkpoint_every=5), tmp_path)
    assert_same_state(other.variables, state.variables)
    records = {record["step"]: record for record in read_metrics(tmp_path / "metrics.jsonl")}
    assert list(records) == [5, 8, 10, 15, 16, 20]
    (*_, last) = read_metrics(workdir / "metrics.jsonl")
    assert records[20]["test_error"] == last["test_error"]


def test_held_out_examples_are_the_validation_set(tmp_path):
    config = tiny_config(**{"data.holdout": 100, "steps": 10})
    train(config, tmp_path)
    (*_, last) = read_metrics(tmp_path / "metrics.jsonl")
    validation = score(config, tmp_path, split="validation")
    assert validation["num_examples"] == 100
    assert last["validation_error"] == validation["top1_error"]
    assert "test_error" not in last
    assert score(config, tmp_path)["num_examples"] == 360


def test_scores_of_the_latest_and_the_best_checkpoint(finished):
    workdir, _ = finished
    records = [record for record in read_metrics(workdir / "metrics.jsonl") if "test_error" in record]
    latest, best = (score(tiny_config(), workdir, which=which) for which in ("latest", "best"))
    assert (latest["step"], latest["top1_error"]) == (20, records[-1]["test_error"])
    assert best["top1_error"] == min(record["test_error"] for record in records)


# Photographs.


def streamed_config(root, **settings):
    """A run on a folder of photographs that uses everything: a plateau, a moving average, statistics at the end."""
    config = recipes.base()
    defaults = {
        "data.name": "folder",
        "data_dir": str(root),
        "data.pad": 0,
        "data.crop_size": 32,
        "data.shorter_side": (36, 48),
        "data.eval_shorter_side": 36,
        "data.pca_std": 0.1,
        "data.threads": 2,
        "model.name": "resnet18",
        "model.stage_sizes": (1, 1),
        "model.width": 4,
        "schedule.name": "plateau",
        "schedule.patience": 1,
        "label_smoothing": 0.1,
        "ema_decay": 0.9,
        "bn_recompute_batches": 2,
        "batch_size": 8,
        "eval_batch_size": 8,
        "steps": 14,
        "log_every": 1,
        "eval_every": 3,
        "checkpoint_every": 5,
    }
    config.update_from_flattened_dict({**defaults, **settings})
    return config


@pytest.fixture(scope="module")
def streamed(photographs, tmp_path_factory):
    """The workdir and the final state of a streamed run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("streamed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(workdir / "cache"))
        return workdir, train(streamed_config(photographs), workdir)


def one_device(monkeypatch):
    """The sooner compiled."""
    mesh = parallel.data_mesh(jax.devices()[:1])
    monkeypatch.setattr(parallel, "data_mesh", lambda: mesh)
    return mesh


def test_a_streamed_run_leaves_the_whole_record(streamed, photographs):
    workdir, state = streamed
    assert state.step == 14
    records = read_metrics(workdir / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 15))
    evaluated = [record["step"] for record in records if "validation_error" in record]
    assert evaluated == [record["step"] for record in records if "validation_loss" in record] == [3, 6, 9, 12, 14]
    assert not any("test_error" in record for record in records)
    # The errors are those of eight photographs.
    assert all(record["validation_error"] % 12.5 == 0 for record in records if "validation_error" in record)
    assert json.loads((workdir / "class_names.json").read_text()) == ["cat", "dog"]
    with np.load(workdir / "normalization.npz") as saved:
        mean, std = saved["mean"], saved["std"]
    crops = [central_crop(path) for path in sorted((photographs / "train").rglob("*.jpg"))]
    assert len(crops) == 40
    # Another decoder and another way to shrink, on noise: near, and nearer than the mean image of other photographs.
    assert mean.shape == (32, 32, 3)
    assert np.abs(mean - np.mean(crops, axis=0)).mean() < 0.01 < np.abs(mean - np.mean(crops[:20], axis=0)).mean()
    np.testing.assert_array_equal(std, 1)


def central_crop(path):
    """32x32 out of the middle of a photograph whose shorter side is 36, in [0, 1]."""
    image = PIL.Image.open(path).convert("RGB")
    scale = 36 / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    pixels = np.asarray(image.resize((width, height), PIL.Image.Resampling.BILINEAR)) / 255
    top, left = (height - 32) // 2, (width - 32) // 2
    return pixels[top : top + 32, left : left + 32]


@pytest.mark.parametrize("step", [4, 12])
def test_a_stopped_streamed_run_goes_on_to_the_same_bits(streamed, photographs, tmp_path, monkeypatch, step):
    config = streamed_config(photographs)
    with monkeypatch.context() as context:
        stop_at(context, step, signal.SIGTERM)
        with pytest.raises(Stopped) as stopped:
            train(config, tmp_path)
    # The record of step 4 is written after step 5; that of step 12 at once, for it ends in an evaluation.
    assert stopped.value.step == {4: 5, 12: 13}[step]
    workdir, state = streamed
    assert_same_state(train(config, tmp_path), state)
    assert without_speed(read_metrics(tmp_path / "metrics.jsonl")) == without_speed(
        read_metrics(workdir / "metrics.jsonl")
    )


def test_the_rate_of_a_streamed_run_follows_the_plateaus_of_its_validation_error(streamed):
    workdir, state = streamed
    least, scale, expected = np.inf, 1.0, []
    records = read_metrics(workdir / "metrics.jsonl")
    for record in records:
        expected.append(0.1 * scale)
        if "validation_error" in record:  # Patience 1: each evaluation that is no better than all before is a plateau.
            scale *= 1 if record["validation_error"] < least else 0.1
            least = min(least, record["validation_error"])
    np.testing.assert_allclose([record["learning_rate"] for record in records], expected, rtol=1e-5)
    np.testing.assert_allclose(state.plateau.scale, scale, rtol=1e-5)
    assert len(set(expected)) > 1


def test_the_last_evaluation_of_a_streamed_run_is_of_the_average_with_its_statistics_anew(
    streamed, photographs, tmp_path, monkeypatch
):
    workdir, state = streamed
    monkeypatch.setenv("XDG_CACHE_HOME", str(workdir / "cache"))
    config = streamed_config(photographs)
    plain = train(streamed_config(photographs, bn_recompute_batches=0), tmp_path)
    assert_same_state(
        (plain.params, plain.batch_stats, plain.ema["params"]), (state.params, state.batch_stats, state.ema["params"])
    )
    mesh, data = parallel.data_mesh(), load_data(config)
    model, normalize = make_model(config, 2), normalization(config, data)
    recomputed = recompute_batch_stats(config, model, normalize, data, mesh, plain)
    assert_same_state(recomputed.ema, state.ema)

    evaluate = make_evaluator(config, model, normalize, data, "validation", mesh)
    losses = [error_rates(evaluate(variables))["loss"] for variables in (state.ema, plain.ema)]
    losses.append(error_rates(evaluate({"params": plain.params, "batch_stats": plain.batch_stats}))["loss"])
    records = [read_metrics(folder / "metrics.jsonl")[-1] for folder in (workdir, tmp_path)]
    np.testing.assert_allclose([record["validation_loss"] for record in records], losses[:2], rtol=1e-6)
    assert len({round(loss, 3) for loss in losses}) == 3  # Each of the three networks is another.
    result = score(config, workdir)
    assert (result["split"], result["num_examples"], result["step"]) == ("validation", 8, 14)
    assert (result["top1_error"], result["loss"]) == (records[0]["validation_error"], records[0]["validation_loss"])


@pytest.mark.parametrize("normalization_name", ["channel", "per_pixel_mean"])
def test_too_many_unreadable_photographs_stop_a_run_with_one_line(
    photographs, tmp_path, monkeypatch, capsys, normalization_name
):
    """In training, or before it when the mean image is computed."""
    one_device(monkeypatch)
    root = tmp_path / "data"
    shutil.copytree(photographs, root)
    broken = sorted((root / "train").rglob("1?.jpg"))[:3]
    for path in broken:
        path.write_bytes(path.read_bytes()[:40])
    settings = {"data.normalization": normalization_name, "steps": 6, "bn_recompute_batches": 0, "ema_decay": 0.0}
    with pytest.raises(UserError) as caught:
        train(streamed_config(root, **settings, **{"data.max_unreadable": 2}), tmp_path / "run")
    message = "3 photographs cannot be decoded, more than config.data.max_unreadable 2; mend them, or raise it"
    assert str(caught.value) == message
    warnings = [line for line in capsys.readouterr().err.splitlines() if "cannot be decoded" in line]
    assert len(warnings) == 3
    assert all(any(str(path.relative_to(root)) in line for line in warnings) for path in broken)
    if normalization_name == "channel":
        again = streamed_config(root, **settings, **{"data.max_unreadable": 3})
        assert train(again, tmp_path / "run", allow_config_change=True).step == 6
    else:
        assert not (tmp_path / "run").exists()


def interrupted(config, workdir, monkeypatch):
    """A run that was stopped after step 2."""
    with monkeypatch.context() as context:
        stop_at(context, 1, signal.SIGTERM)
        with pytest.raises(Stopped):
            train(config, workdir)


def test_a_run_goes_on_with_the_mean_image_that_it_began_with(photographs, tmp_path, monkeypatch):
    one_device(monkeypatch)
    root, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(photographs, root)
    config = streamed_config(root, steps=4, bn_recompute_batches=0)
    interrupted(config, run, monkeypatch)
    before = (run / "normalization.npz").read_bytes()
    for path in (root / "train").rglob("*.jpg"):
        PIL.Image.new("RGB", (40, 40)).save(path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    assert train(config, run).step == 4
    assert (run / "normalization.npz").read_bytes() == before
    with np.load(run / "normalization.npz") as saved:
        assert saved["mean"].min() > 0.1  # Not that of black photographs.


def test_a_run_does_not_go_on_with_other_classes(photographs, tmp_path, monkeypatch):
    one_device(monkeypatch)
    root, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(photographs, root)
    config = streamed_config(root, steps=4, bn_recompute_batches=0)
    interrupted(config, run, monkeypatch)
    for split in ("train", "val"):
        (root / split / "dog").rename(root / split / "ant")  # As many classes, and now the first of them.
    before = {path: path.read_bytes() for path in run.glob("*.*") if path.is_file()}
    with pytest.raises(UserError, match=rf"the data have other classes than {run / 'class_names.json'}"):
        train(config, run)
    assert {path: path.read_bytes() for path in run.glob("*.*") if path.is_file()} == before


@pytest.mark.parametrize(
    "settings",
    [
        {"data.crop": "center", "data.shorter_side": (256, 480)},
        {"data.normalization": "none"},
        {"schedule.name": "linear", "schedule.patience": 5},
    ],
    ids=str,
)
def test_a_wrong_name_in_the_config_is_refused_before_anything_is_written(photographs, tmp_path, settings):
    key, value = next(iter(settings.items()))
    with pytest.raises(UserError, match=rf"config\.{key} is {value!r}; it must be"):
        train(streamed_config(photographs, **settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_sample_of_imagenet_is_trained_on_and_scored(prepared_tfds, tmp_path, monkeypatch):
    if not (prepared_tfds / "imagenet2012").is_dir():
        pytest.skip(f"needs imagenet2012 prepared in {prepared_tfds}")
    one_device(monkeypatch)
    settings = {"data.name": "imagenet2012", "data.normalization": "channel", "steps": 3, "data.crop": "random_resized"}
    config = streamed_config(prepared_tfds, **settings, **{"data.shorter_side": (256, 480), "bn_recompute_batches": 0})
    train(config, tmp_path)
    (*_, last) = read_metrics(tmp_path / "metrics.jsonl")
    assert len(json.loads((tmp_path / "class_names.json").read_text())) == 1000
    result = score(config, tmp_path)
    assert result["num_examples"] == 100
    assert (result["top1_error"], result["loss"]) == (last["validation_error"], last["validation_loss"])
