"""Checkpoints: asynchronous, whole or absent, the latest few and the best. The one module that imports Orbax."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers

from resnet_jax import parallel
from resnet_jax.errors import UserError, one_line
from resnet_jax.train.state import TrainState

_NONE_READABLE = "no checkpoint in {} can be read; start in another workdir"


def open_checkpoints(directory: Path, keep: int, read_only: bool = False) -> ocp.CheckpointManager:
    """A manager that preserves the ``keep`` latest checkpoints and the one with the least evaluation error."""

    def error(metrics: dict[str, float]) -> float:
        return metrics["top1_error"]

    options = ocp.CheckpointManagerOptions(
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
    if not read_only and parallel.is_main_process():
        _set_aside_damaged_metrics(directory)
    handlers = {"state": ocp.StandardCheckpointHandler()}
    return ocp.CheckpointManager(directory.absolute(), item_handlers=handlers, options=options)


def best_step(manager: ocp.CheckpointManager) -> int | None:
    """The step with the least evaluation error, the latest of equals; None if no checkpoint was evaluated."""
    errors = {}
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            metrics = manager.metrics(step)
        except ValueError:  # Damaged JSON; reading this checkpoint will say so.
            continue
        if metrics:
            errors[step] = metrics["top1_error"]
    return min(errors, key=errors.__getitem__) if errors else None


def save(manager: ocp.CheckpointManager, step: int, state: TrainState, metrics: dict[str, float] | None) -> None:
    """Starts to save ``state`` and returns once it is copied off the devices. Does nothing if ``step`` is saved."""
    if manager.latest_step() != step:
        manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)), metrics=metrics)


def restore_latest(
    manager: ocp.CheckpointManager, template: TrainState, mesh: Mesh, set_aside: bool
) -> TrainState | None:
    """The newest readable state, or None where nothing was ever saved.

    A checkpoint that cannot be read is named on stderr and passed over for the one before it; with ``set_aside`` it is
    renamed to ``STEP.corrupt``, so that its step can be saved again. Raises UserError where none can be read, or where
    they belong to another model.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    for step in steps:
        try:
            return _restore(manager, step, template, mesh)
        except UserError:
            raise
        except Exception as error:  # Orbax and TensorStore raise many kinds for damaged or missing files.
            older = [other for other in steps if other < step]
            then = f"falling back to step {older[0]}" if older else "there is none before it"
            path = manager.directory / str(step)
            print(f"warning: checkpoint {path} is corrupt ({one_line(error)}); {then}", file=sys.stderr)
            if set_aside and older:
                if parallel.is_main_process():
                    _set_aside(Path(manager.directory) / str(step))
                manager.reload()
    if steps:
        raise UserError(_NONE_READABLE.format(manager.directory))
    return None


def restore_step(manager: ocp.CheckpointManager, step: int, template: TrainState, mesh: Mesh) -> TrainState:
    """The state saved at ``step``. Raises UserError if it cannot be read or belongs to another model."""
    try:
        return _restore(manager, step, template, mesh)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"checkpoint {manager.directory / str(step)} is corrupt ({one_line(error)}); use --checkpoint=latest"
        ) from error


def stop_requested(manager: ocp.CheckpointManager, step: int, received: list[int]) -> bool:
    """Whether to save and stop after ``step``; all processes of a job answer alike.

    One process asks its own signal handler. In a multi-host job JAX's service spreads the preemption notice.
    """
    if jax.process_count() > 1:
        return bool(manager.reached_preemption(step))
    return bool(received)


def _restore(manager: ocp.CheckpointManager, step: int, template: TrainState, mesh: Mesh) -> TrainState:
    _check_same_model(manager, step, template)
    sharding = parallel.replicated(mesh)
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), template)
    return manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))["state"]


def _check_same_model(manager: ocp.CheckpointManager, step: int, template: TrainState) -> None:
    saved = manager.item_metadata(step)["state"]
    if saved is None:
        raise FileNotFoundError("it has no state")
    saved_shapes = {_name(path): tuple(leaf.shape) for path, leaf in _leaves(dict(saved))}
    shapes = {f"params/{_name(path)}": leaf.shape for path, leaf in _leaves(template.params)}
    for name in sorted(shapes.keys() | {name for name in saved_shapes if name.startswith("params/")}):
        here, there = shapes.get(name, "absent"), saved_shapes.get(name, "absent")
        if here != there:
            raise UserError(
                f"checkpoint {manager.directory / str(step)} is of another model: {name} is {there} in it and {here} "
                f"in config.model; use the config that made it, or another workdir"
            )


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)


def _name(path: Any) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def _set_aside_damaged_metrics(directory: Path) -> None:
    """Does for a damaged metrics file what ``restore_latest`` does for a state; Orbax reads these on opening."""
    steps = [path for path in directory.glob("*") if path.name.isdigit()]
    damaged: dict[Path, str] = {}
    for path in steps:
        try:
            json.loads((path / "metrics" / "metrics").read_text())
        except FileNotFoundError:
            continue  # Saved without an evaluation.
        except (OSError, ValueError) as error:
            damaged[path] = one_line(error)
    if damaged and len(damaged) == len(steps):
        raise UserError(_NONE_READABLE.format(directory))
    for path, reason in damaged.items():
        print(f"warning: checkpoint {path} is corrupt ({reason}); passing it over", file=sys.stderr)
        _set_aside(path)


def _set_aside(path: Path) -> None:
    target, number = path.with_name(f"{path.name}.corrupt"), 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.corrupt{number}")
    path.rename(target)
