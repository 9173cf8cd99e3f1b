"""The training loop: steps, evaluations, checkpoints, and stopping on a signal with the state saved."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh

from resnet_jax import distributed, parallel
from resnet_jax.data.dataset import Dataset
from resnet_jax.data.feed import training_inputs
from resnet_jax.errors import UserError
from resnet_jax.stopping import Interrupted, interruptible
from resnet_jax.tasks.task import Task, Variables
from resnet_jax.train import checkpoint
from resnet_jax.train.bn_statistics import recompute_batch_stats
from resnet_jax.train.metrics_log import MetricsLog, check_finite
from resnet_jax.train.schedules import Plateau, Schedule
from resnet_jax.train.signals import Stopped, stop_signals
from resnet_jax.train.state import TrainState, init_state, overlaid, replace_variables, step_plateau, without_reduction
from resnet_jax.train.step import StepSettings, TrainStep, make_train_step
from resnet_jax.train.workdir import locked
from resnet_jax.train.writers import MetricsWriter


class LoopSettings(NamedTuple):
    """The plain values of a run. All intervals are in steps and multiples of ``steps_per_dispatch``."""

    steps: int
    batch_size: int  # Over all devices.
    steps_per_dispatch: int = 1
    log_every: int = 100
    eval_every: int = 1_000
    checkpoint_every: int = 1_000
    keep_checkpoints: int = 2  # The latest ones, besides the best.
    bn_recompute_batches: int = 0  # Batch statistics are recomputed over this many batches at the end; 0: not.


def train(
    task: Task,
    dataset: Dataset,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: Schedule,
    plateau: Plateau | None,
    step_settings: StepSettings,
    settings: LoopSettings,
    mesh: Mesh,
    workdir: Path,
    describe: Callable[[], None] | None = None,
    plot: Callable[[Path, Path, str], None] | None = None,
    start: Variables | None = None,
    begun: bool | None = None,
) -> TrainState:
    """Trains until settings.steps, from the newest checkpoint in ``workdir`` if there is one.

    Args:
        optimizer: takes its learning rate as an argument of ``update``; ``Optimizer.make`` gives one.
        schedule: learning rate by step.
        plateau: reduces the rate further by the evaluations; None: nothing does.
        describe: writes how the run came about, on the main process, once the checkpoints are found to fit it.
        plot: draws (metrics.jsonl, picture, title) whenever the run ends.
        start: variables that a new run starts with, any part of the task's; the others are random.
        begun: whether the run had checkpoints when the config was compared with its own; None: it was not.

    A run stopped or killed anywhere and started again ends with the same parameters to the bit, on the same devices.

    Raises UserError for faults in the workdir or its checkpoints and when the loss stops being finite; Stopped after
    SIGTERM or SIGINT, with the state saved.
    """
    seed = step_settings.seed
    new_state = partial(
        init_state,
        task,
        optimizer,
        seed,
        step_settings.ema_decay,
        step_settings.hold_error,
        dataset.image_shape,
        mesh,
    )
    train_step = make_train_step(task, dataset, optimizer, schedule, step_settings, settings.steps_per_dispatch, mesh)
    main_process = parallel.is_main_process()

    with locked(workdir) if main_process else nullcontext():
        checkpoints = checkpoint.open_checkpoints(workdir / "checkpoints", settings.keep_checkpoints, task.best)
        try:
            state = checkpoint.restore_latest(checkpoints, jax.eval_shape(new_state), mesh, set_aside=True)
            if state is None:
                state = new_state()
                if start:
                    state = replace_variables(state, lambda variables: overlaid(variables, start), mesh)
            elif begun is False:
                raise UserError(f"another training has begun in {workdir} meanwhile; run the same command again")
            elif plateau is None:
                state = without_reduction(state, mesh)
            first = int(state.step)
            if first % settings.steps_per_dispatch:
                raise UserError(
                    f"the run stopped at step {first}, which is not a multiple of config.steps_per_dispatch "
                    f"{settings.steps_per_dispatch}; resume with 1, or another divisor of {first}"
                )
            writer = None
            if main_process:
                # A finished run keeps what it says of how it came about.
                if describe and (first < settings.steps or not (workdir / "environment.json").exists()):
                    describe()
                writer = MetricsWriter(workdir, first, settings.steps)
                if first:
                    print(f"resuming from step {first} in {workdir}", file=sys.stderr)
            try:
                state = _run_steps(
                    task, dataset, train_step, plateau, step_settings, settings, mesh, state, checkpoints, writer
                )
            finally:
                if writer:
                    writer.close()
                    if plot:
                        plot(workdir / "metrics.jsonl", workdir / task.picture, task.title)
        finally:
            checkpoint.close(checkpoints)
    if main_process:
        curves = f"; the {' and '.join(task.drawn)} curves are in {workdir / task.picture}" if plot else ""
        print(f"trained to step {int(state.step)}{curves}", file=sys.stderr)
    return state


def _run_steps(
    task: Task,
    dataset: Dataset,
    train_step: TrainStep,
    plateau: Plateau | None,
    step_settings: StepSettings,
    settings: LoopSettings,
    mesh: Mesh,
    state: TrainState,
    checkpoints: checkpoint.Checkpoints,
    writer: MetricsWriter | None,
) -> TrainState:
    start, stride, seed = int(state.step), settings.steps_per_dispatch, step_settings.seed
    resident, inputs = training_inputs(dataset, seed, settings.batch_size, stride, start, settings.steps, mesh)
    log = MetricsLog(writer, start, settings.batch_size, task.percentages)
    previous = None

    def evaluate(state: TrainState, last: bool) -> tuple[TrainState, dict[str, float], dict[str, float]]:
        """The state after an evaluation, its figures, and what is recorded of them. Raises Interrupted."""
        with interruptible(told):
            if last and settings.bn_recompute_batches:
                count = settings.bn_recompute_batches
                taken = (mesh, state, step_settings.accumulate_steps, resident)
                state = recompute_batch_stats(task, dataset, seed, settings.batch_size, count, *taken)
            evaluation = task.evaluate(state.variables)
        split = dataset.evaluation_split
        record = {f"{split}_{name}": evaluation[figure] for figure, name in task.recorded.items()}
        if plateau:
            state = step_plateau(plateau, state, evaluation[task.best], mesh)
        return state, evaluation, record

    with stop_signals() as told, log:
        due = start > 0 and (start % settings.eval_every == 0 or start >= settings.steps)
        if distributed.from_process_0("cut short", lambda: due and not checkpoint.evaluated(checkpoints, start)):
            try:
                state, evaluation, figures = evaluate(state, start >= settings.steps)
            except Interrupted as interrupted:
                raise Stopped(interrupted.signum, start) from None
            if writer:
                writer.amend({"step": start} | figures)
            checkpoint.replace(checkpoints, start, state, evaluation)
            log.restart_clock()
        for done, batches in zip(range(start + stride, settings.steps + 1, stride), inputs, strict=True):
            state, metrics = train_step(state, resident, batches)
            # One call ahead of the device keeps it busy; further ahead, a stop would have to wait for all of them.
            jax.block_until_ready(previous)
            previous = metrics
            log.write(log.fetch())  # The metrics of the call before.
            if writer:
                writer.advance(stride)

            last = done >= settings.steps
            evaluating = done % settings.eval_every == 0 or last
            saving = done % settings.checkpoint_every == 0 or evaluating
            if done % settings.log_every == 0 or saving:
                log.hold(done, metrics)
            signum = told()
            if not (saving or signum):
                continue
            check_finite(metrics)
            record, evaluated = log.fetch(), None
            if evaluating and not signum:
                try:
                    state, evaluated, figures = evaluate(state, last)
                    record |= figures
                except Interrupted as interrupted:  # It begins anew when the run resumes.
                    signum = interrupted.signum
            # The record must be on disk before the checkpoint: a kill between the two then leaves no gap in it.
            log.write(record)
            checkpoint.save(checkpoints, done, state, evaluated)
            if signum or last:
                checkpoint.wait(checkpoints)  # Here, where a first signal does not end the process.
            if signum:
                raise Stopped(signum, done)
            log.restart_clock()
    return state
