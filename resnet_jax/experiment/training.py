"""A whole training run from a config: what train.py runs."""

from functools import partial
from pathlib import Path

from resnet_jax import build, distributed, parallel
from resnet_jax.analysis.curves import plot_errors
from resnet_jax.config import Config, read_config, refuse_change, to_json
from resnet_jax.data.dataset import Dataset
from resnet_jax.data.normalization import Normalization
from resnet_jax.errors import UserError
from resnet_jax.experiment.agreement import agree, agree_on_weights, refuse_separate_workdirs
from resnet_jax.experiment.exported import is_exported
from resnet_jax.experiment.initial import RANDOM, check_start, read_start
from resnet_jax.files import expanded
from resnet_jax.train import checkpoint, loop
from resnet_jax.train.state import TrainState
from resnet_jax.train.workdir import (
    check_path,
    initial_record,
    prepare_workdir,
    refuse_config_data,
    refuse_other_classes,
)


def train(
    config: Config, workdir: str | Path, allow_config_change: bool = False, data: Dataset | None = None
) -> TrainState:
    """Trains until config.steps, from the newest checkpoint in ``workdir`` if there is one.

    Args:
        config: the whole run. It may be changed between two calls only with ``allow_config_change``.
        workdir: where checkpoints, metrics and pictures go; made if need be.
        data: trained on instead of config.data, such as ``ResidentDataset.from_arrays(...)``. Such a run is resumed
            with data, too.

    The result depends on the config and the data alone: a run stopped or killed anywhere and started again ends with
    the same parameters to the bit, on the same devices. Nothing is written before config, data and model are checked,
    and no config is stored before it is found to fit the checkpoints.

    In a job of several processes all must have the same config, code and data, and share the workdir.

    Raises UserError for faults in the config, the data, the workdir or its checkpoints, and when the loss stops being
    finite; Stopped after SIGTERM or SIGINT, with the state saved.
    """
    workdir, mesh = expanded(workdir), parallel.data_mesh()
    build.check(config, mesh.size)
    check_path(workdir)
    if is_exported(workdir):
        raise UserError(
            f"{workdir} is an exported network; name another --workdir, and start from it by "
            f"--config.init.path={workdir}"
        )
    # A run that resumes has its weights, whose file may be gone, in its checkpoints.
    begun = distributed.from_process_0("begun", partial(checkpoint.exists, workdir / "checkpoints"))
    if not begun:
        check_start(config)
    if not allow_config_change:
        refuse_change(config, workdir / "config.json")
        if begun and data is None:
            refuse_config_data(workdir)
    dataset = build.make_dataset(config) if data is None else data
    agree(config, dataset)
    if begun:  # Also because it makes network file systems look anew.
        refuse_separate_workdirs(workdir)
    intervals = build.intervals(config, dataset.num_train)
    if not allow_config_change:
        _refuse_other_intervals(config, intervals, dataset.num_train, workdir / "config.json")
    schedule = build.make_schedule(config, intervals)
    model = build.make_model(config, len(dataset.class_names), mesh)
    refuse_other_classes(workdir, dataset.class_names)
    start = RANDOM if begun else read_start(config, model, dataset.class_names, dataset.image_shape, mesh)
    record = None if begun else start.record or {}
    normalize = _normalization(config, dataset, workdir, begun, allow_config_change, start.normalization)
    task = build.make_task(config, model, dataset, normalize, mesh)
    optimizer = build.make_optimizer(config, model, task.trained(dataset.image_shape))
    agree_on_weights("the start", start.variables, normalize)
    if not begun:
        refuse_separate_workdirs(workdir)  # Last, because it makes it.
    return loop.train(
        task,
        dataset,
        optimizer,
        schedule,
        config.schedule.plateau,
        build.step_settings(config, intervals),
        build.loop_settings(config, intervals),
        mesh,
        workdir,
        partial(
            prepare_workdir,
            workdir,
            to_json(config),
            normalize.save,
            dataset.class_names,
            dataset.image_shape,
            record,
            None if data is None else data.name,
        ),
        partial(plot_errors, figures=task.drawn),
        start.variables,
        begun,
    )


def _refuse_other_intervals(config: Config, intervals: build.Intervals, num_train: int, stored: Path) -> None:
    """Raises UserError where config.steps_per_dispatch, which may change, rounds a run's epochs to other steps."""
    if not stored.exists():
        return
    was = read_config(stored)
    before = build.intervals(was, num_train)
    for key, steps in before._asdict().items():
        now = getattr(intervals, key)
        if steps != now:
            raise UserError(
                f"config.{key} is {getattr(config, key)!r}, which is {steps} steps in this run and would be rounded to "
                f"{now} by config.steps_per_dispatch={config.steps_per_dispatch}; set that to "
                f"{was.steps_per_dispatch}, or pass --allow_config_change"
            )


def _normalization(
    config: Config,
    dataset: Dataset,
    workdir: Path,
    begun: bool,
    allow_config_change: bool,
    of_weights: Normalization | None,
) -> Normalization:
    """That of the weights that a new run starts from, else the stored one of the run, else that of the config.

    A run that took over its weights' keeps it also where the config may change.
    """
    if of_weights is not None:
        return of_weights
    stored = workdir / "normalization.npz"
    taken_over = begun and initial_record(workdir).get("normalization") == "weights"
    if taken_over or (stored.exists() and not allow_config_change):
        return Normalization.load(stored)
    return build.make_normalization(config, dataset)
