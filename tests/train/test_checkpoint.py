import logging
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from resnet_jax import distributed, parallel
from resnet_jax.errors import UserError
from resnet_jax.train import checkpoint
from tests.train.saved_states import DROPPED_READS, bits, restore, save_steps, state_at, template

pytestmark = DROPPED_READS


def test_the_newest_state_comes_back_bit_for_bit(tmp_path, mesh):
    save_steps(tmp_path, [3, 7], mesh)
    restored = restore(tmp_path, mesh)
    assert jax.tree.structure(restored) == jax.tree.structure(template())
    assert bits(restored) == bits(state_at(7, mesh))
    assert {leaf.sharding for leaf in jax.tree.leaves(restored)} == {parallel.replicated(mesh)}


def test_a_state_saved_on_one_device_comes_back_on_eight(tmp_path, one_device):
    save_steps(tmp_path, [3], one_device)
    eight = parallel.data_mesh()
    restored = restore(tmp_path, eight)
    assert bits(restored) == bits(state_at(3, one_device))
    assert {leaf.sharding for leaf in jax.tree.leaves(restored)} == {parallel.replicated(eight)}


def test_nothing_saved_is_no_state(tmp_path, one_device):
    assert restore(tmp_path / "checkpoints", one_device) is None


def test_the_latest_ones_and_the_best_are_kept(tmp_path, one_device):
    manager = checkpoint.open_checkpoints(tmp_path, 2, "top1_error")
    for step, error in enumerate([5.0, 1.0, 4.0, 3.0, 2.0], start=1):
        checkpoint.save(manager, step, state_at(step, one_device), {"top1_error": error})
    checkpoint.save(manager, 6, state_at(6, one_device), None)  # Saved without an evaluation, on a signal.
    manager.close()
    manager = checkpoint.open_checkpoints(tmp_path, 2, "top1_error", read_only=True)
    assert sorted(manager.all_steps()) == [2, 5, 6]
    best = checkpoint.restore_best(manager, template(), one_device)
    assert bits(best) == bits(state_at(2, one_device))
    manager.close()


def test_a_step_that_is_saved_is_not_saved_again(tmp_path, one_device):
    manager = checkpoint.open_checkpoints(tmp_path, 2, "top1_error")
    for seed in (4, 5):
        checkpoint.save(manager, 4, state_at(seed, one_device), None)
    manager.close()
    assert bits(restore(tmp_path, one_device)) == bits(state_at(4, one_device))


def test_a_checkpoint_of_an_older_version_has_no_checksums_and_is_read(tmp_path, one_device):
    save_steps(tmp_path, [1], one_device)
    shutil.rmtree(tmp_path / "1" / "checksums")
    assert bits(restore(tmp_path, one_device)) == bits(state_at(1, one_device))


def test_without_an_evaluation_there_is_no_best_checkpoint(tmp_path, one_device):
    manager = checkpoint.open_checkpoints(tmp_path, 2, "top1_error")
    checkpoint.save(manager, 1, state_at(1, one_device), None)
    manager.wait_until_finished()
    assert checkpoint.restore_best(manager, template(), one_device) is None
    manager.close()


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"width": 8}, r"params/\S+ is \(.*4.*\) in it and \(.*8.*\) in config\.model"),
        ({"stage_sizes": (2,)}, r"params/stage1_block2/\S+ is absent in it and \(.*\) in config\.model"),
    ],
)
@pytest.mark.extensive
def test_a_checkpoint_of_another_model_is_a_user_error_that_names_a_parameter(tmp_path, one_device, fields, fault):
    save_steps(tmp_path, [1, 2], one_device)
    manager = checkpoint.open_checkpoints(tmp_path, 5, "top1_error")
    other = template(**fields)
    with pytest.raises(UserError, match=fault):
        checkpoint.restore_latest(manager, other, one_device, set_aside=True)
    with pytest.raises(UserError, match=fault):
        checkpoint.restore_best(manager, other, one_device)
    manager.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


@pytest.mark.parametrize("restore_one", [checkpoint.restore_best, partial(checkpoint.restore_latest, set_aside=False)])
@pytest.mark.extensive
def test_a_training_may_remove_what_an_evaluation_is_about_to_read(
    tmp_path, one_device, monkeypatch, capsys, restore_one
):
    save_steps(tmp_path, [1, 2], one_device, keep=1)
    reading, read = checkpoint.open_checkpoints(tmp_path, 1, "top1_error", read_only=True), checkpoint._restore

    def read_late(manager, step, *args):
        if step == 2:
            save_steps(tmp_path, [3], one_device, keep=1)
            assert not (tmp_path / "2").exists()
        return read(manager, step, *args)

    monkeypatch.setattr(checkpoint, "_restore", read_late)
    assert bits(restore_one(reading, template(), one_device)) == bits(state_at(3, one_device))
    reading.close()
    assert capsys.readouterr().err == ""


def test_a_save_cut_short_by_a_kill_is_no_checkpoint(tmp_path, one_device):
    save_steps(tmp_path, [1], one_device)
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    assert int(restore(tmp_path, one_device).step) == 1
    assert [path.name for path in Path(tmp_path).iterdir()] == ["1"]


def test_a_checkpoint_is_replaced_by_its_evaluated_self(tmp_path, one_device):
    manager = checkpoint.open_checkpoints(tmp_path, 1, "top1_error")
    checkpoint.save(manager, 4, state_at(4, one_device), None)
    manager.wait_until_finished()
    assert not checkpoint.evaluated(manager, 4)
    checkpoint.replace(manager, 4, state_at(5, one_device), {"top1_error": 1.0})
    assert checkpoint.evaluated(manager, 4)
    manager.close()
    assert bits(restore(tmp_path, one_device)) == bits(state_at(5, one_device))
    assert [path.name for path in tmp_path.iterdir()] == ["4"]


@pytest.mark.parametrize("saved_again", [False, True])
def test_a_kill_while_a_checkpoint_is_replaced_loses_nothing(tmp_path, one_device, saved_again):
    save_steps(tmp_path, [4], one_device)
    (tmp_path / "4").rename(tmp_path / "4.unevaluated")
    if saved_again:
        shutil.copytree(tmp_path / "4.unevaluated", tmp_path / "4")
    else:
        with pytest.raises(UserError, match=r"the only checkpoint in .* is being saved again"):
            restore(tmp_path, one_device, set_aside=False, read_only=True)
    assert checkpoint.exists(tmp_path)
    assert bits(restore(tmp_path, one_device)) == bits(state_at(4, one_device))
    assert [path.name for path in tmp_path.iterdir()] == ["4"]


@pytest.mark.parametrize("which", ["latest", "best"])
def test_in_a_job_all_restore_what_process_0_finds(tmp_path, one_device, monkeypatch, which):
    """As process 1 of two, to which the file system shows another newest checkpoint than to process 0."""
    save_steps(tmp_path, [1, 2], one_device)  # The second is the better.
    answers = {"steps": "[1]", "best step": "1", "everyone": "true"}
    monkeypatch.setattr(distributed, "exchange", lambda name, value: [answers[name], value])
    manager = checkpoint.open_checkpoints(tmp_path, 5, "top1_error", read_only=True)
    monkeypatch.setattr(distributed, "_job", SimpleNamespace(index=1))
    if which == "best":
        state = checkpoint.restore_best(manager, template(), one_device)
    else:
        state = checkpoint.restore_latest(manager, template(), one_device, set_aside=False)
    assert bits(state) == bits(state_at(1, one_device))
    monkeypatch.undo()
    manager.close()


def test_in_a_job_no_process_restores_what_another_cannot_read(tmp_path, one_device, monkeypatch):
    """Orbax would wait for the other one without end."""
    save_steps(tmp_path, [1], one_device)
    answers = {"steps": ["[1]"], "everyone": ["false"]}
    monkeypatch.setattr(distributed, "exchange", lambda name, value: [*answers[name], value])
    manager = checkpoint.open_checkpoints(tmp_path, 5, "top1_error", read_only=True)
    monkeypatch.setattr(distributed, "_job", SimpleNamespace(index=1))
    monkeypatch.setattr(manager, "restore", pytest.fail)
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read"):
        checkpoint.restore_latest(manager, template(), one_device, set_aside=False)
    monkeypatch.undo()
    manager.close()


def test_in_a_job_process_0_tells_all_which_metrics_are_damaged(tmp_path, one_device, monkeypatch, capsys):
    """As process 1 of two, which sees nothing wrong and must take part in setting the checkpoint aside."""
    save_steps(tmp_path, [1, 2], one_device)
    waited = []
    monkeypatch.setattr(distributed, "_job", SimpleNamespace(index=1))
    monkeypatch.setattr(distributed, "exchange", lambda name, value: ['["2"]', value])
    monkeypatch.setattr(parallel, "wait_for_all", waited.append)
    checkpoint._set_aside_damaged_metrics(tmp_path, "top1_error")
    assert waited == ["set aside"] and capsys.readouterr().err == ""


def test_opening_to_read_lets_through_no_more_than_the_program_does(monkeypatch):
    logger = logging.getLogger("absl")
    for level, inside in ((logging.CRITICAL, logging.CRITICAL), (logging.WARNING, logging.ERROR)):
        monkeypatch.setattr(logger, "level", level)
        with checkpoint._no_warnings():
            assert logger.level == inside
        assert logger.level == level


def test_reading_warns_of_nothing(tmp_path, one_device, caplog):
    manager = checkpoint.open_checkpoints(tmp_path, keep=1, best="top1_error")
    manager.close()
    caplog.clear()
    checkpoint.open_checkpoints(tmp_path, keep=1, best="top1_error", read_only=True).close()
    assert not caplog.records
