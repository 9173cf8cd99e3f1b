import gc
import json
import shutil
import zlib
from functools import lru_cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import parallel
from resnet_jax.errors import UserError
from resnet_jax.models.zoo import create_model
from resnet_jax.tasks.classification import ClassificationTask
from resnet_jax.train import checkpoint
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.state import init_state

# When one read of a restore fails, Orbax drops the others: some never start, and some end after their event loop.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def collect_dropped_coroutines():
    """Inside the test that dropped them, where the filters above hold."""
    yield
    gc.collect()


def template(width=4, stage_sizes=(1,)):
    """The shapes and dtypes of a tiny network's state."""
    task = ClassificationTask(create_model("resnet20", width=width, stage_sizes=stage_sizes))
    mesh = parallel.data_mesh()
    return jax.eval_shape(lambda: init_state(task, SGD().make(), 0, 0.0, 0.0, (32, 32, 3), mesh))


@lru_cache
def host_state(seed):
    """A state of random bits, so that no two leaves or states are alike: NaN, infinities and denormals among them."""
    rng = np.random.default_rng(seed)

    def leaf(like):
        if like.dtype == jnp.bool_:
            return rng.random(like.shape) < 0.5
        return np.frombuffer(rng.bytes(like.size * like.dtype.itemsize), like.dtype).reshape(like.shape)

    return jax.tree.map(leaf, template())


def state_at(step, mesh):
    return parallel.to_global(host_state(step).replace(step=np.int32(step)), parallel.replicated(mesh))


def bits(state):
    return [(leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(state)]


def save_steps(directory, steps, mesh, keep=5):
    manager = checkpoint.open_checkpoints(directory, keep, "top1_error")
    for step in steps:
        checkpoint.save(manager, step, state_at(step, mesh), {"top1_error": 50.0 - step})
    manager.close()


def restore(directory, mesh, set_aside=True, read_only=False):
    manager = checkpoint.open_checkpoints(directory, 5, "top1_error", read_only=read_only)
    try:
        return checkpoint.restore_latest(manager, template(), mesh, set_aside)
    finally:
        manager.close()


def files_of(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


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


def delete(path):
    path.unlink()


def flip_bits(path):
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 8] = bytes(byte ^ 0xFF for byte in data[middle : middle + 8])
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def assert_falls_back(directory, mesh, capsys):
    """From a corrupt step 2 to step 1, after which step 2 can be saved again."""
    capsys.readouterr()
    restored = restore(directory, mesh)
    assert bits(restored) == bits(state_at(1, mesh))
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert f"{directory / '2'} is corrupt" in warning and "skipping it" in warning
    assert sorted(path.name for path in directory.iterdir()) == ["1", "2.corrupt"]
    save_steps(directory, [2], mesh)
    assert bits(restore(directory, mesh)) == bits(state_at(2, mesh))


@pytest.mark.parametrize("damage", [delete, flip_bits, truncate])
@pytest.mark.parametrize(
    "pattern",
    [
        "state/d/*",
        *(pytest.param(f"state/{name}", marks=pytest.mark.extensive) for name in ("_METADATA", "manifest.ocdbt")),
    ],
)
def test_a_corrupt_newest_checkpoint_is_set_aside_for_the_one_before_it(tmp_path, one_device, capsys, pattern, damage):
    save_steps(tmp_path, [1, 2], one_device)
    files = list((tmp_path / "2").glob(pattern))
    assert files
    for path in files:
        damage(path)
    assert_falls_back(tmp_path, one_device, capsys)


def test_a_checkpoint_without_its_state_is_set_aside(tmp_path, one_device, capsys):
    save_steps(tmp_path, [1, 2], one_device)
    for path in sorted((tmp_path / "2" / "state").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "2" / "state").rmdir()
    assert_falls_back(tmp_path, one_device, capsys)


@pytest.mark.parametrize("damage", [delete, flip_bits, truncate])
@pytest.mark.extensive
def test_damage_to_any_one_file_never_gives_a_wrong_state(tmp_path, one_device, damage):
    save_steps(tmp_path, [1, 2], one_device)
    right = {1: bits(state_at(1, one_device)), 2: bits(state_at(2, one_device))}
    for path in files_of(tmp_path / "2"):
        content = path.read_bytes()
        damage(path)
        name = str(path.relative_to(tmp_path))
        try:
            restored = restore(tmp_path, one_device, set_aside=False, read_only=True)
        except UserError as error:
            assert "2 is corrupt (" in str(error), name
        else:
            assert bits(restored) == right.get(int(restored.step)), name
        path.write_bytes(content)


def flip_one_bit(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)


def zero_a_sector(path, rng):
    """4 KiB that are not 0 already, or all of a smaller file."""
    data = bytearray(path.read_bytes())
    while not any(data[(start := 4096 * int(rng.integers(-(-len(data) // 4096)))) : start + 4096]):
        pass
    size = len(data[start : start + 4096])
    data[start : start + 4096] = bytes(size)
    path.write_bytes(data)


def cut_off(path, rng):
    data = path.read_bytes()
    path.write_bytes(data[: -int(rng.integers(1, min(1000, len(data)) + 1))])


def test_a_parameter_that_was_changed_without_a_trace_is_named_and_set_aside(tmp_path, one_device, capsys):
    """As by a flipped bit in memory: what is read is whole, and not what was saved."""
    save_steps(tmp_path, [1, 2], one_device)
    path = tmp_path / "2" / "checksums" / "crc32.json"
    stored = json.loads(path.read_text())
    kernel = np.asarray(host_state(2).params["stage1_block1"]["conv1"]["kernel"])
    assert stored["params/stage1_block1/conv1/kernel"] == f"float32 {kernel.shape} {zlib.crc32(kernel.tobytes()):08x}"
    assert len(stored) == len(jax.tree.leaves(template()))
    path.write_text(json.dumps(stored | {"params/head/bias": "float32 (10,) 00000000"}))
    with pytest.raises(UserError, match=r"2 is corrupt \(params/head/bias does not have its checksum\); train on"):
        restore(tmp_path, one_device, set_aside=False, read_only=True)
    assert_falls_back(tmp_path, one_device, capsys)


def test_a_checkpoint_of_an_older_version_has_no_checksums_and_is_read(tmp_path, one_device):
    save_steps(tmp_path, [1], one_device)
    shutil.rmtree(tmp_path / "1" / "checksums")
    assert bits(restore(tmp_path, one_device)) == bits(state_at(1, one_device))


@pytest.mark.slow
def test_random_damage_to_any_file_of_a_large_state_never_gives_a_wrong_state(tmp_path, one_device):
    """24 MB of state, in which Orbax's own format does not notice a flipped bit or a zeroed sector."""
    seed = int(np.random.default_rng().integers(10**6))
    print(f"seed {seed}")  # Shown when the test fails.
    rng = np.random.default_rng(seed)
    fields = {"width": 150, "stage_sizes": (1, 1, 1)}
    like = template(**fields)
    host = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), like)
    states = {step: host.replace(step=np.int32(step)) for step in (1, 2)}
    right = {step: bits(state) for step, state in states.items()}
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(host)) >= 20e6
    manager = checkpoint.open_checkpoints(tmp_path, 5, "top1_error")
    for step, state in states.items():
        checkpoint.save(manager, step, parallel.to_global(state, parallel.replicated(one_device)), {"top1_error": 1.0})
    manager.close()
    tried = fallen_back = 0
    for path in files_of(tmp_path / "2" / "state") + files_of(tmp_path / "2" / "checksums"):
        content = path.read_bytes()
        for damage in (flip_one_bit, zero_a_sector, cut_off):
            damage(path, rng)
            manager = checkpoint.open_checkpoints(tmp_path, 5, "top1_error", read_only=True)
            name = f"{damage.__name__} {path.relative_to(tmp_path)}"
            try:
                restored = checkpoint.restore_latest(manager, like, one_device, set_aside=False)
                assert bits(restored) == right[int(restored.step)], name
                fallen_back += int(restored.step) == 1
            except UserError as error:
                assert "2 is corrupt (" in str(error), name
                fallen_back += 1
            finally:
                manager.close()
            tried += 1
            path.write_bytes(content)
    assert fallen_back > tried / 4  # Much of what Orbax writes about the arrays is not needed to read them.


def another_record(path):
    path.write_text('{"loss": 1}')


@pytest.mark.parametrize("damage", [flip_bits, truncate, another_record])
@pytest.mark.extensive
def test_a_checkpoint_with_damaged_metrics_is_set_aside(tmp_path, one_device, capsys, damage):
    save_steps(tmp_path, [1, 2], one_device)
    damage(tmp_path / "2" / "metrics" / "metrics")
    assert bits(restore(tmp_path, one_device)) == bits(state_at(1, one_device))
    assert f"warning: checkpoint {tmp_path / '2'} is corrupt" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2.corrupt"]


def test_the_best_checkpoint_is_found_beside_one_with_damaged_metrics(tmp_path, one_device):
    save_steps(tmp_path, [1, 2, 3], one_device)  # Each has a smaller error than the one before.
    truncate(tmp_path / "3" / "metrics" / "metrics")
    manager = checkpoint.open_checkpoints(tmp_path, 5, "top1_error", read_only=True)
    assert bits(checkpoint.restore_best(manager, template(), one_device)) == bits(state_at(2, one_device))
    manager.close()


def test_without_an_evaluation_there_is_no_best_checkpoint(tmp_path, one_device):
    manager = checkpoint.open_checkpoints(tmp_path, 2, "top1_error")
    checkpoint.save(manager, 1, state_at(1, one_device), None)
    manager.wait_until_finished()
    assert checkpoint.restore_best(manager, template(), one_device) is None
    manager.close()


def test_a_second_corrupt_checkpoint_of_one_step_keeps_the_first(tmp_path, one_device):
    save_steps(tmp_path, [1], one_device)
    for _ in range(2):
        save_steps(tmp_path, [2], one_device)
        delete(tmp_path / "2" / "state" / "_METADATA")
        assert int(restore(tmp_path, one_device).step) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2.corrupt", "2.corrupt2"]


def test_no_readable_checkpoint_is_a_user_error(tmp_path, one_device, capsys):
    save_steps(tmp_path, [1, 2], one_device)
    for step in ("1", "2"):
        delete(tmp_path / step / "state" / "_METADATA")
    with pytest.raises(UserError, match=f"no checkpoint in {tmp_path} can be read"):
        restore(tmp_path, one_device)
    warnings = capsys.readouterr().err
    assert f"{tmp_path / '2'} is corrupt" in warnings and f"{tmp_path / '1'} is corrupt" in warnings
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]  # Nothing is renamed for nothing.


def test_a_corrupt_best_checkpoint_is_a_user_error(tmp_path, one_device):
    save_steps(tmp_path, [1, 2], one_device)
    delete(tmp_path / "2" / "state" / "_METADATA")
    manager = checkpoint.open_checkpoints(tmp_path, 5, "top1_error", read_only=True)
    with pytest.raises(UserError, match=f"{tmp_path / '2'} is corrupt"):
        checkpoint.restore_best(manager, template(), one_device)
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


def test_a_read_only_manager_leaves_every_file_as_it_was(tmp_path, one_device):
    save_steps(tmp_path, [1, 2], one_device)
    delete(tmp_path / "2" / "state" / "_METADATA")
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()  # As a kill in the middle of a save leaves it.

    def snapshot():
        every = sorted(tmp_path.rglob("*"))
        return [(path, path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None) for path in every]

    before = snapshot()
    assert int(restore(tmp_path, one_device, set_aside=False, read_only=True).step) == 1
    assert snapshot() == before


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
    assert bits(restore(tmp_path, one_device)) == bits(state_at(4, one_device))
    assert [path.name for path in tmp_path.iterdir()] == ["4"]
