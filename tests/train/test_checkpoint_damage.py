"""Damaged checkpoints are named, set aside and passed over; none gives a wrong state."""

import json
import zlib

import jax
import numpy as np
import pytest

from resnet_jax import parallel
from resnet_jax.errors import UserError
from resnet_jax.train import checkpoint
from tests.train.saved_states import DROPPED_READS, bits, host_state, restore, save_steps, state_at, template

pytestmark = DROPPED_READS


def files_of(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


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
