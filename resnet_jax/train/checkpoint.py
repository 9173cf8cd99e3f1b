"""Checkpoints: asynchronous, atomic, verified, the latest few and the best. The only module that imports Orbax."""

import dataclasses
import json
import logging
import shutil
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers

from resnet_jax import distributed, parallel
from resnet_jax.errors import UserError, one_line
from resnet_jax.train.state import TrainState

_DAMAGED = (OSError, ValueError, KeyError, TypeError)  # What a metrics file that is none can raise.
_CHECKSUMS = "crc32.json"  # In the folder "checksums" of a checkpoint.
_REPLACED = ".unevaluated"  # A checkpoint while ``replace`` saves its step again.
_REMOVAL = 0.5  # Seconds in which the files of a checkpoint are removed.
_NONE_READABLE = "no checkpoint in {} can be read; start in another workdir"


class DamagedCheckpoint(Exception):
    """A checkpoint whose bytes are not those that were saved."""


class _ChecksumHandler(ocp.AsyncCheckpointHandler):
    """Writes the checksums of a state beside it, before the checkpoint is renamed into place.

    They are computed in Orbax's thread, from a copy in host memory, while training goes on.
    """

    async def async_save(self, directory: Any, args: "_ChecksumSave") -> list[ocp.future.Future]:
        async def write() -> None:
            if args.leaves:
                (directory / _CHECKSUMS).write_text(json.dumps(_checksums(args.leaves)))

        return [ocp.future.CommitFutureAwaitingContractedSignals(write(), name="checksums")]

    def save(self, directory: Any, args: "_ChecksumSave") -> None:
        raise NotImplementedError("the manager saves asynchronously")

    def restore(self, directory: Any, args: Any = None) -> None:
        raise NotImplementedError("_verify reads the file")


@ocp.args.register_with_handler(_ChecksumHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class _ChecksumSave(ocp.args.CheckpointArgs):
    """Host arrays by name; empty on the processes that do not write them."""

    leaves: dict[str, np.ndarray]


class Checkpoints(ocp.CheckpointManager):
    """Orbax's manager, with the name of the figure, lower is better, that picks the best checkpoint."""

    best_figure: str


def open_checkpoints(directory: Path, keep: int, best: str, read_only: bool = False) -> Checkpoints:
    """A manager that preserves the ``keep`` latest checkpoints and the one with the least ``best`` figure.

    Each is saved with the figures of an evaluation by name, or with none.
    """

    def error(metrics: dict[str, float]) -> float:
        return metrics[best]

    options = partial(
        ocp.CheckpointManagerOptions,
        best_fn=error,
        best_mode="min",
        save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),  # The training loop decides when.
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(keep),
                checkpoint_managers.BestN(
                    get_metric_fn=error, reverse=True, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        ),
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
        create=not read_only,
        lightweight_initialize=read_only,  # Or a damaged metrics file of any checkpoint would stop us here.
    )
    if not read_only:
        if parallel.is_main_process():
            _finish_replacing(directory)
        parallel.wait_for_all("finish replacing")
        _set_aside_damaged_metrics(directory, best)
    handlers = {"state": ocp.StandardCheckpointHandler(), "checksums": _ChecksumHandler()}
    with _no_warnings() if read_only else nullcontext():  # Orbax warns that what is read only is read only.
        manager = Checkpoints(directory.absolute(), item_handlers=handlers, options=options())
    manager.best_figure = best
    return manager


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Keeps Orbax's warnings, which it gives through absl's logger, from a program that reads a run."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        logger.setLevel(level)


def exists(directory: Path) -> bool:
    """Whether any checkpoint was saved there, readable or not, or as a kill inside ``replace`` leaves it."""
    return any(path.name.removesuffix(_REPLACED).isdigit() for path in directory.glob("*"))


def save(manager: Checkpoints, step: int, state: TrainState, metrics: dict[str, float] | None) -> None:
    """Starts to save ``state`` and returns once it is copied off the devices. Does nothing if ``step`` is saved.

    Raises UserError if this save cannot begin, or the one before it did not end, for example because the disk is full.
    """
    try:
        if manager.latest_step() != step:
            if parallel.is_main_process() and not Path(manager.directory).is_dir():
                print(f"warning: {manager.directory} was removed; saving goes on in a new one", file=sys.stderr)
            # Replicated, so that one process has all of it. Copied, because the next step donates these buffers.
            copies = {name: np.array(_local(leaf)) for name, leaf in _named(state) if parallel.is_main_process()}
            items = ocp.args.Composite(state=ocp.args.StandardSave(state), checksums=_ChecksumSave(copies))
            manager.save(step, args=items, metrics=metrics)
    except Exception as error:  # What went wrong in Orbax's threads comes back in many kinds.
        raise _not_written(manager, error) from error


def wait(manager: Checkpoints) -> None:
    """Waits for a save under way. Raises UserError if it could not be written."""
    try:
        manager.wait_until_finished()
    except Exception as error:
        raise _not_written(manager, error) from error


def close(manager: Checkpoints) -> None:
    """Waits for a save under way. Raises UserError if it could not be written."""
    try:
        manager.close()
    except Exception as error:
        raise _not_written(manager, error) from error


def restore_latest(manager: Checkpoints, template: TrainState, mesh: Mesh, set_aside: bool) -> TrainState | None:
    """The newest readable state, or None where nothing was ever saved.

    A checkpoint that cannot be read, or that is not what was saved, is named on stderr and skipped for the one before
    it; with ``set_aside`` it is renamed to ``STEP.corrupt``, so that its step can be saved again.

    In a job of several processes all restore the same one.

    Raises UserError, and renames nothing, where none can be read or where they are of another model; without
    ``set_aside`` also for one that can be read but is not what was saved, and where ``replace`` is at the only one.
    """
    steps = distributed.from_process_0("steps", partial(_steps, manager))
    unreadable: list[Path] = []
    for step in steps:
        path = Path(manager.directory) / str(step)
        error: Exception | None = None
        try:
            state = _restore(manager, step, template, mesh)
        except Exception as raised:  # Orbax and TensorStore raise many kinds for damaged or missing files.
            error = raised
        if not distributed.everyone(error is None):
            if not set_aside and distributed.everyone(_removed(path)):
                manager.reload()
                return restore_latest(manager, template, mesh, set_aside)
            if isinstance(error, UserError):
                raise error
            error = error or DamagedCheckpoint("another process cannot read it")
            if isinstance(error, DamagedCheckpoint) and not set_aside:
                raise UserError(
                    f"checkpoint {path} is corrupt ({error}); train on, which sets it aside for the one before it, "
                    f"or remove it"
                ) from None
            if parallel.is_main_process():
                print(f"warning: checkpoint {path} is corrupt ({one_line(error)}); skipping it", file=sys.stderr)
            unreadable.append(path)
            continue
        if set_aside and unreadable:
            _set_aside(unreadable)
            manager.reload()
        return state
    if steps:
        raise UserError(_NONE_READABLE.format(manager.directory))
    if any(Path(manager.directory).glob(f"*{_REPLACED}")):
        raise UserError(
            f"the only checkpoint in {manager.directory} is being saved again, or was when the run was killed; "
            f"wait for the training, or start it again"
        )
    return None


def _steps(manager: Checkpoints) -> list[int]:
    """Of all checkpoints, the newest first."""
    return sorted(manager.all_steps(), reverse=True)


def restore_best(manager: Checkpoints, template: TrainState, mesh: Mesh) -> TrainState | None:
    """The state that was evaluated best, the latest of equals; None if none of the saved ones was evaluated.

    In a job of several processes all restore the same one.

    Raises UserError if it cannot be read or is of another model.
    """
    best_step = distributed.from_process_0("best step", partial(_best_step, manager))
    if best_step is None:
        return None
    path = Path(manager.directory) / str(best_step)
    try:
        return _restore(manager, best_step, template, mesh)
    except Exception as error:
        if not distributed.active() and _removed(path):
            manager.reload()
            return restore_best(manager, template, mesh)
        if isinstance(error, UserError):
            raise
        raise UserError(f"checkpoint {path} is corrupt ({one_line(error)}); use --checkpoint=latest") from error


def _best_step(manager: Checkpoints) -> int | None:
    figures: dict[int, float] = {}
    for step in _steps(manager):
        try:
            figure = _evaluation_figure(Path(manager.directory) / str(step), manager.best_figure)
        except _DAMAGED:  # Whether its state can be read does not matter then.
            continue
        if figure is not None:
            figures[step] = figure
    return min(figures, key=figures.__getitem__) if figures else None


def _removed(path: Path) -> bool:
    """Whether a checkpoint that could not be read is no more: a training beside us removes old ones for newer."""
    deadline = time.monotonic() + _REMOVAL
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not path.exists()


def evaluated(manager: Checkpoints, step: int) -> bool:
    """Whether the checkpoint of ``step`` was saved with the figures of an evaluation."""
    return _evaluation_figure(Path(manager.directory) / str(step), manager.best_figure) is not None


def replace(manager: Checkpoints, step: int, state: TrainState, metrics: dict[str, float]) -> None:
    """Saves ``step`` once more, now evaluated; a kill at any moment leaves the old checkpoint or the new one.

    Raises UserError if it could not be written.
    """
    wait(manager)
    path = Path(manager.directory) / str(step)
    if parallel.is_main_process():
        path.rename(path.with_name(f"{step}{_REPLACED}"))
    parallel.wait_for_all("replaced")
    manager.reload()
    save(manager, step, state, metrics)
    wait(manager)
    if parallel.is_main_process():
        _finish_replacing(Path(manager.directory))


def _finish_replacing(directory: Path) -> None:
    for old in directory.glob(f"*{_REPLACED}"):
        if old.with_suffix("").exists():
            shutil.rmtree(old)
        else:
            old.rename(old.with_suffix(""))


def _restore(manager: Checkpoints, step: int, template: TrainState, mesh: Mesh) -> TrainState:
    # In a job Orbax restores together, and waits without end for a process that fails before the others.
    if not distributed.everyone(_can_be_read(Path(manager.directory) / str(step))):
        raise OSError("a process cannot read it")
    _check_same_model(manager, step, template)
    sharding = parallel.replicated(mesh)
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), template)
    state = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))["state"]
    _verify(Path(manager.directory) / str(step), state)
    return state


def _can_be_read(folder: Path) -> bool:
    """Whether this process can open all files of a checkpoint. In a job; alone restoring it says more."""
    if not distributed.active():
        return True
    try:
        files = [path for path in folder.rglob("*") if path.is_file()]
        for path in files:
            with path.open("rb") as file:
                file.read(1)
        return bool(files)
    except OSError:
        return False


def _verify(step_directory: Path, state: TrainState) -> None:
    """Raises DamagedCheckpoint unless ``state`` is what was saved. Checkpoints of older versions have no checksums."""
    path = step_directory / "checksums" / _CHECKSUMS
    if not path.exists():
        return
    saved = dict(json.loads(path.read_text()))
    found = _checksums({name: np.asarray(_local(leaf)) for name, leaf in _named(state)})
    for name in sorted(found.keys() | saved.keys()):
        if found.get(name) != saved.get(name):
            raise DamagedCheckpoint(f"{name} does not have its checksum")


def _checksums(leaves: dict[str, np.ndarray]) -> dict[str, str]:
    """By name: type, shape and CRC-32 of the bytes, as in "float32 (3, 3, 16, 16) 89abcdef"."""
    return {
        name: f"{leaf.dtype} {leaf.shape} {zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data):08x}"
        for name, leaf in leaves.items()
    }


def _local(leaf: jax.Array) -> jax.Array:
    """This process's copy of a replicated array."""
    return leaf.addressable_data(0)


def _named(tree: Any) -> list[tuple[str, Any]]:
    """The leaves by path, "params/head/kernel", alike for a state and for Orbax's metadata of one."""
    leaves = jax.tree_util.tree_leaves_with_path(serialization.to_state_dict(tree))
    return [("/".join(str(key.key) for key in path), leaf) for path, leaf in leaves]


def _check_same_model(manager: Checkpoints, step: int, template: TrainState) -> None:
    saved = manager.item_metadata(step)["state"]
    if saved is None:
        raise FileNotFoundError("it has no state")
    there, here = _shapes(dict(saved)), _shapes(template)
    for name in sorted(here.keys() | there.keys(), key=lambda name: (not name.startswith("params/"), name)):
        if here.get(name) != there.get(name):
            kind, place = "config", "this run"
            if name.startswith(("params/", "batch_stats/")):
                kind, place = "model", "config.model"
            raise UserError(
                f"checkpoint {manager.directory / str(step)} is of another {kind}: {name} is "
                f"{there.get(name, 'absent')} in it and {here.get(name, 'absent')} in {place}; "
                f"use the config that made it, or another workdir"
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in _named(tree)}


def _evaluation_figure(step_directory: Path, name: str) -> float | None:
    """The figure that a checkpoint was saved with; None for none. Raises one of ``_DAMAGED``."""
    try:
        return float(json.loads((step_directory / "metrics" / "metrics").read_text())[name])
    except FileNotFoundError:
        return None


def _set_aside_damaged_metrics(directory: Path, best: str) -> None:
    """Does for a damaged metrics file what ``restore_latest`` does for a state; Orbax reads these on opening."""
    damaged = distributed.from_process_0("damaged metrics", partial(_damaged_metrics, directory, best))
    if damaged:
        _set_aside([directory / name for name in damaged])


def _damaged_metrics(directory: Path, best: str) -> list[str]:
    """The names of the checkpoints whose metrics files are damaged; warns of each. Raises UserError if all are."""
    steps = [path for path in directory.glob("*") if path.name.isdigit()]
    damaged: dict[Path, str] = {}
    for path in steps:
        try:
            _evaluation_figure(path, best)
        except _DAMAGED as error:
            damaged[path] = one_line(error)
    if damaged and len(damaged) == len(steps):
        raise UserError(_NONE_READABLE.format(directory))
    for path, reason in damaged.items():
        print(f"warning: checkpoint {path} is corrupt ({reason}); skipping it", file=sys.stderr)
    return [path.name for path in damaged]


def _set_aside(paths: list[Path]) -> None:
    """Renames checkpoints to ``STEP.corrupt``; every process returns when it is done."""
    for path in paths if parallel.is_main_process() else ():
        target, number = path.with_name(f"{path.name}.corrupt"), 1
        while target.exists():
            number += 1
            target = path.with_name(f"{path.name}.corrupt{number}")
        path.rename(target)
    parallel.wait_for_all("set aside")


def _not_written(manager: Checkpoints, error: Exception) -> UserError:
    return UserError(
        f"cannot write a checkpoint in {manager.directory} ({one_line(error)}); fix that and run the same command again"
    )
