"""Whole runs on the digits: their files, and what an interruption leaves and does not leave behind."""

import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from resnet_jax import recipes
from resnet_jax.config import refuse_change
from resnet_jax.errors import UserError
from resnet_jax.evaluation.score import score
from resnet_jax.train.loop import train
from resnet_jax.train.signals import Stopped
from resnet_jax.train.workdir import locked
from resnet_jax.writers import MetricsWriter, read_metrics


def tiny_config(**settings):
    config = recipes.digits_quickstart()
    defaults = {"model.stage_sizes": (1,), "model.width": 4, "batch_size": 16, "steps": 20, "log_every": 5}
    config.update_from_flattened_dict({**defaults, "eval_every": 10, "checkpoint_every": 10, **settings})
    return config


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
    before = (workdir / "metrics.jsonl").read_text()
    assert_same_state(train(tiny_config(), workdir), state)
    assert (workdir / "metrics.jsonl").read_text() == before


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
