"""Whole runs on arrays and on photographs: their record, and what an interruption leaves behind and what not."""

import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from resnet_jax.data.crops import ScaleJitter
from resnet_jax.data.normalization import Channel, PerPixelMean
from resnet_jax.data.photographs import Photographs
from resnet_jax.data.resident import ResidentDataset
from resnet_jax.data.transforms import Flip, PcaColor, RandomCrop, Transforms
from resnet_jax.errors import UserError
from resnet_jax.evaluation import classify
from resnet_jax.evaluation.classify import error_rates, make_evaluator
from resnet_jax.models.zoo import create_model
from resnet_jax.tasks.classification import Classification
from resnet_jax.train import checkpoint, loop
from resnet_jax.train.bn_statistics import recompute_batch_stats
from resnet_jax.train.loop import LoopSettings
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.schedules import Constant, Plateau
from resnet_jax.train.signals import Stopped
from resnet_jax.train.state import init_state
from resnet_jax.train.step import StepSettings
from resnet_jax.train.workdir import locked
from resnet_jax.train.writers import MetricsWriter, read_metrics

SHIFTED = Transforms(random_crop=RandomCrop(pad=1))


@pytest.fixture(scope="module")
def shades() -> ResidentDataset:
    """Noise of three brightnesses, which a tiny network learns to tell apart."""
    rng = np.random.default_rng(0)

    def draw(count):
        labels = rng.integers(0, 3, count).astype(np.int32)
        return (rng.integers(0, 60, (count, 8, 8)) + 80 * labels[:, None, None]).astype(np.uint8), labels

    return ResidentDataset.from_arrays(*draw(160), *draw(40))


@pytest.fixture(scope="module")
def train_on(shades, one_device):
    """``(workdir, ...) -> state``: a run of 20 steps with some of its settings changed."""

    def train(
        workdir,
        dataset=shades,
        width=4,
        peak=0.1,
        optimizer=None,
        describe=None,
        plot=None,
        plateau=None,
        begun=None,
        **changes,
    ):
        settings = LoopSettings(steps=20, batch_size=16, log_every=5, eval_every=10, checkpoint_every=10)
        settings = settings._replace(**changes)
        model = create_model("resnet20", 3, width=width, stage_sizes=(1,))
        normalization = PerPixelMean().make(dataset)
        return loop.train(
            Classification().make(model, dataset, normalization, SHIFTED, one_device, 16),
            dataset,
            (optimizer or SGD()).make(),
            Constant().make(peak, settings.steps, 10),
            plateau,
            StepSettings(log_every=settings.log_every),
            settings,
            one_device,
            workdir,
            describe,
            plot,
            begun=begun,
        )

    return train


@pytest.fixture(scope="module")
def finished(train_on, tmp_path_factory):
    """The workdir and the final state of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, jax.device_get(train_on(workdir))


def assert_same_state(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def without_speed(workdir):
    """The records of a run, without what differs from run to run."""
    records = read_metrics(workdir / "metrics.jsonl")
    return [{name: value for name, value in record.items() if name != "images_per_second"} for record in records]


def stop_at(monkeypatch, step, signum):
    """Sends this process a signal when the record of ``step`` is written."""
    write = MetricsWriter.write

    def write_and_signal(self, record):
        write(self, record)
        if record["step"] == step:
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(MetricsWriter, "write", write_and_signal)


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def test_a_run_leaves_the_whole_record(finished):
    workdir, state = finished
    assert state.step == 20
    records = read_metrics(workdir / "metrics.jsonl")
    assert [record["step"] for record in records] == [5, 10, 15, 20]
    names = {"step", "train_loss", "train_error", "learning_rate", "images_per_second"}
    evaluated = ["test_error", "test_loss"]
    assert [set(record) - names for record in records] == [set(), set(evaluated)] * 2
    assert all(record["test_error"] % 2.5 == 0 for record in records if "test_error" in record)  # Of 40, in percent.
    # In percent, of five batches of 16; a network that learns nothing errs on two of three.
    assert all(record["train_error"] == pytest.approx(round(record["train_error"] / 1.25) * 1.25) for record in records)
    assert records[-1]["train_error"] < 50
    assert list(records[1]) == ["step", "train_loss", "train_error", "learning_rate", "images_per_second", *evaluated]
    assert list((workdir / "tensorboard").iterdir())
    assert saved_steps(workdir) == [10, 20]


@pytest.mark.parametrize("signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.extensive)])
def test_a_stopped_run_resumes_to_the_same_bits(train_on, finished, tmp_path, monkeypatch, signum):
    drawn = []
    plot = lambda *arguments: drawn.append(arguments)  # noqa: E731
    with monkeypatch.context() as context:
        # The signal comes while the record of step 5 is written, that is after step 6: between two checkpoints.
        stop_at(context, 5, signum)
        with pytest.raises(Stopped) as stopped:
            train_on(tmp_path, plot=plot)
    assert stopped.value.step == 6
    assert stopped.value.signum == signum
    assert drawn == [(tmp_path / "metrics.jsonl", tmp_path / "errors.png", "resnet on arrays")]
    workdir, state = finished
    assert_same_state(train_on(tmp_path), state)
    assert without_speed(tmp_path) == without_speed(workdir)


@pytest.mark.parametrize("step", [10, 20])
@pytest.mark.extensive
def test_a_signal_in_an_evaluation_stops_it_and_the_resumed_run_makes_up_for_it(
    train_on, finished, tmp_path, monkeypatch, step
):
    with monkeypatch.context() as context:
        inputs, calls = classify.evaluation_inputs, []

        def interrupted(*arguments):
            calls.append(None)
            for number, batch in enumerate(inputs(*arguments)):
                if len(calls) == step // 10:
                    assert number == 0, "the evaluation goes on"
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        context.setattr(classify, "evaluation_inputs", interrupted)
        with pytest.raises(Stopped) as stopped:
            train_on(tmp_path)
    assert stopped.value.step == step
    assert not (tmp_path / "checkpoints" / str(step) / "metrics").exists()
    workdir, state = finished
    assert_same_state(train_on(tmp_path), state)
    assert without_speed(tmp_path) == without_speed(workdir)
    assert (tmp_path / "checkpoints" / str(step) / "metrics").exists()
    assert saved_steps(tmp_path) == saved_steps(workdir)


def test_a_finished_run_stays_as_it_is(train_on, finished):
    workdir, state = finished
    (workdir / "environment.json").write_text("{}")
    before = {path: path.read_bytes() for path in workdir.glob("*.json*")}
    assert_same_state(train_on(workdir, describe=pytest.fail), state)
    assert {path: path.read_bytes() for path in workdir.glob("*.json*")} == before and len(before) == 2


def test_messages_say_where_the_run_resumes_and_ends(train_on, tmp_path, capsys):
    described = []
    train_on(tmp_path, steps=10, describe=lambda: described.append("first"))
    assert "resuming" not in capsys.readouterr().err
    train_on(tmp_path, steps=20, describe=lambda: described.append("second"))
    lines = capsys.readouterr().err.splitlines()
    assert f"resuming from step 10 in {tmp_path}" in lines and lines[-1] == "trained to step 20"
    assert any("step 15/20: train loss" in line for line in lines)
    assert described == ["first", "second"]


def test_a_corrupt_newest_checkpoint_costs_only_the_steps_since_the_one_before(train_on, tmp_path, finished, capsys):
    train_on(tmp_path)
    for path in (tmp_path / "checkpoints" / "20").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    workdir, state = finished
    assert_same_state(train_on(tmp_path), state)
    assert "20 is corrupt" in capsys.readouterr().err
    assert without_speed(tmp_path) == without_speed(workdir)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(train_on, tmp_path):
    train_on(tmp_path, steps=10)
    with pytest.raises(UserError, match=r"not finite at step 11; .*learning_rate"):
        train_on(tmp_path, peak=1e30)
    assert saved_steps(tmp_path) == [10]


def test_what_does_not_fit_the_checkpoints_is_refused_before_anything_is_described(train_on, finished):
    workdir, _ = finished
    with pytest.raises(UserError, match="is of another model: params/"):
        train_on(workdir, width=8, describe=pytest.fail)
    intervals = {"steps": 24, "log_every": 3, "eval_every": 12, "checkpoint_every": 12}
    with pytest.raises(UserError, match=r"step 20, which is not a multiple of config\.steps_per_dispatch 3; resume"):
        train_on(workdir, steps_per_dispatch=3, describe=pytest.fail, **intervals)


def test_a_run_that_began_after_the_configs_were_compared_is_left_alone(train_on, finished):
    workdir, _ = finished
    with pytest.raises(UserError, match=r"another training has begun in .* meanwhile; run the same command again"):
        train_on(workdir, describe=pytest.fail, begun=False)


@pytest.mark.extensive  # Three runs.
def test_the_reductions_of_a_plateau_end_with_its_schedule(train_on, tmp_path):
    reducing = Plateau(patience=1, factor=0.01)
    state = train_on(tmp_path, steps=10, eval_every=2, checkpoint_every=5, width=1, peak=0.0, plateau=reducing)
    assert state.plateau.scale < 0.1  # At a rate of 0 no error falls.
    resumed = train_on(tmp_path, steps=15, width=1)
    assert resumed.plateau.scale == 1
    (*_, record) = read_metrics(tmp_path / "metrics.jsonl")
    assert (record["step"], record["learning_rate"]) == (15, pytest.approx(0.1))


@pytest.mark.extensive
def test_weight_decay_of_other_parameters_resumes_from_the_same_checkpoint(train_on, tmp_path):
    train_on(tmp_path, steps=10)
    assert train_on(tmp_path, steps=15, optimizer=SGD(decay="kernels")).step == 15


def test_a_workdir_in_use_is_refused(train_on, tmp_path):
    with locked(tmp_path), pytest.raises(UserError, match="another process trains in"):
        train_on(tmp_path, describe=pytest.fail)


def test_a_workdir_that_cannot_be_written_is_named(train_on, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to workdir"):
        train_on(tmp_path / "file" / "run")


@pytest.mark.extensive
def test_several_steps_a_dispatch_leave_the_same_record(train_on, tmp_path, finished):
    train_on(tmp_path, steps_per_dispatch=5)
    records, expected = (read_metrics(Path(folder) / "metrics.jsonl") for folder in (tmp_path, finished[0]))
    assert [record["step"] for record in records] == [record["step"] for record in expected]
    for record, other in zip(records, expected, strict=True):
        np.testing.assert_allclose(record["train_loss"], other["train_loss"], rtol=1e-3)


@pytest.mark.slow
def test_evaluations_and_checkpoints_between_two_logged_steps_are_recorded_too(train_on, tmp_path, finished):
    workdir, state = finished
    other = train_on(tmp_path, log_every=8, eval_every=10, checkpoint_every=5)
    assert_same_state(other.variables, state.variables)
    records = {record["step"]: record for record in read_metrics(tmp_path / "metrics.jsonl")}
    assert list(records) == [5, 8, 10, 15, 16, 20]
    (*_, last) = read_metrics(workdir / "metrics.jsonl")
    assert records[20]["test_error"] == last["test_error"]


def test_held_out_examples_are_the_validation_set(train_on, tmp_path, shades):
    train_on(tmp_path, dataset=shades.hold_out(32), steps=10)
    (*_, last) = read_metrics(tmp_path / "metrics.jsonl")
    assert last["validation_error"] % (100 / 32) == 0
    assert "test_error" not in last


# Photographs.


class Parts:
    """A run on a folder of photographs that uses everything: a plateau, a moving average, statistics at the end."""

    plateau = Plateau(patience=1)
    step = StepSettings(log_every=1, ema_decay=0.9)
    settings = LoopSettings(
        steps=14, batch_size=8, log_every=1, eval_every=3, checkpoint_every=5, bn_recompute_batches=2
    )

    def __init__(self, root, mesh):
        part = Photographs(
            name="folder", crop=ScaleJitter(shorter_side=(36, 48)), crop_size=32, eval_shorter_side=36, threads=2
        )
        self.mesh = mesh
        self.dataset = part.load(str(root))
        self.normalization = Channel().make(self.dataset)
        self.model = create_model("resnet18", 2, width=4, stage_sizes=(1, 1))
        transforms = Transforms(flip=Flip(probability=0.5), pca_color=PcaColor(std=0.1))
        task = Classification(label_smoothing=0.1)
        self.task = task.make(self.model, self.dataset, self.normalization, transforms, mesh, 8)

    def train(self, workdir, **changes):
        settings = self.settings._replace(**changes)
        schedule = self.plateau.make(0.1, settings.steps, 5)
        return loop.train(
            self.task,
            self.dataset,
            SGD().make(),
            schedule,
            self.plateau,
            self.step,
            settings,
            self.mesh,
            workdir,
        )


@pytest.fixture(scope="module")
def parts(photographs, two_devices) -> Parts:
    return Parts(photographs, two_devices)


@pytest.fixture(scope="module")
def streamed(parts, tmp_path_factory):
    """The workdir and the final state of a streamed run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("streamed")
    return workdir, parts.train(workdir)


@pytest.mark.extensive
def test_a_streamed_run_leaves_the_whole_record(streamed):
    workdir, state = streamed
    assert state.step == 14
    records = read_metrics(workdir / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 15))
    evaluated = [record["step"] for record in records if "validation_error" in record]
    assert evaluated == [record["step"] for record in records if "validation_loss" in record] == [3, 6, 9, 12, 14]
    assert not any("test_error" in record for record in records)
    # The errors are those of eight photographs.
    assert all(record["validation_error"] % 12.5 == 0 for record in records if "validation_error" in record)


@pytest.mark.extensive
@pytest.mark.parametrize("step", [4, 12])
def test_a_stopped_streamed_run_resumes_to_the_same_bits(parts, streamed, tmp_path, monkeypatch, step):
    with monkeypatch.context() as context:
        stop_at(context, step, signal.SIGTERM)
        with pytest.raises(Stopped) as stopped:
            parts.train(tmp_path)
    # The record of step 4 is written after step 5; that of step 12 at once, for it ends in an evaluation.
    assert stopped.value.step == {4: 5, 12: 13}[step]
    workdir, state = streamed
    assert_same_state(parts.train(tmp_path), state)
    assert without_speed(tmp_path) == without_speed(workdir)


@pytest.mark.extensive
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


@pytest.mark.extensive
def test_the_last_evaluation_of_a_streamed_run_is_of_the_average_with_recomputed_statistics(parts, streamed, tmp_path):
    workdir, state = streamed
    plain = parts.train(tmp_path, bn_recompute_batches=0)
    assert_same_state(
        (plain.params, plain.batch_stats, plain.ema["params"]), (state.params, state.batch_stats, state.ema["params"])
    )
    recomputed = recompute_batch_stats(parts.task, parts.dataset, 0, 8, 2, parts.mesh, plain)
    assert_same_state(recomputed.ema, state.ema)

    evaluate = make_evaluator(parts.model, parts.normalization, parts.dataset, "validation", parts.mesh, 8)
    losses = [error_rates(evaluate(variables))["loss"] for variables in (state.ema, plain.ema)]
    losses.append(error_rates(evaluate({"params": plain.params, "batch_stats": plain.batch_stats}))["loss"])
    records = [read_metrics(folder / "metrics.jsonl")[-1] for folder in (workdir, tmp_path)]
    np.testing.assert_allclose([record["validation_loss"] for record in records], losses[:2], rtol=1e-6)
    assert len({round(loss, 3) for loss in losses}) == 3  # Each of the three networks is another.


@pytest.mark.extensive
def test_the_best_checkpoint_is_that_of_the_least_recorded_error(parts, streamed):
    workdir, _ = streamed
    records = [record for record in read_metrics(workdir / "metrics.jsonl") if "validation_error" in record]
    least = min(record["validation_error"] for record in records)
    template = jax.eval_shape(
        lambda: init_state(parts.task, SGD().make(), 0, 0.9, 0.0, parts.dataset.image_shape, parts.mesh)
    )
    manager = checkpoint.open_checkpoints(workdir / "checkpoints", 2, parts.task.best, read_only=True)
    best = checkpoint.restore_best(manager, template, parts.mesh)
    manager.close()
    assert int(best.step) == max(record["step"] for record in records if record["validation_error"] == least)
