"""The training run: set-up, the loop over steps with its evaluations and checkpoints, and an orderly end."""

import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnet_jax import parallel
from resnet_jax.analysis.curves import plot_errors
from resnet_jax.config import make_model, refuse_change, validate
from resnet_jax.data.dataset import Data, evaluation_split, load_data
from resnet_jax.data.feed import training_inputs
from resnet_jax.data.normalization import Normalization, normalization
from resnet_jax.errors import UserError
from resnet_jax.evaluation.classify import Evaluator, error_rates, make_evaluator
from resnet_jax.train import checkpoint
from resnet_jax.train.bn_statistics import recompute_batch_stats
from resnet_jax.train.metrics_log import MetricsLog, check_finite
from resnet_jax.train.signals import Stopped, stop_signals
from resnet_jax.train.state import TrainState, init_state, step_plateau
from resnet_jax.train.step import TrainStep, make_train_step
from resnet_jax.train.workdir import locked, prepare_workdir, refuse_other_classes
from resnet_jax.writers import MetricsWriter


def train(config: ConfigDict, workdir: Path, allow_config_change: bool = False) -> TrainState:
    """Trains until config.steps, going on from the newest checkpoint in ``workdir`` if there is one.

    The result depends on the config alone: a run stopped or killed anywhere and started again ends with the same
    parameters to the bit, on the same devices. Nothing is written before config, data and model are found sound, and
    no config is stored before it is found to fit the checkpoints.

    Raises UserError for faults in the config, the data, the workdir or its checkpoints, and when the loss stops being
    finite; Stopped after SIGTERM or SIGINT, with the state saved.
    """
    mesh = parallel.data_mesh()
    validate(config, mesh.size)
    if not allow_config_change:
        refuse_change(config, workdir / "config.json")
    data = load_data(config)
    model = make_model(config, len(data.class_names))
    template = jax.eval_shape(lambda: init_state(config, model, data.image_shape, mesh))
    refuse_other_classes(workdir, data.class_names)
    stored = workdir / "normalization.npz"
    resumed = stored.exists() and not allow_config_change
    normalize = Normalization.load(stored) if resumed else normalization(config, data)
    train_step = make_train_step(config, model, normalize, mesh)
    evaluate = make_evaluator(config, model, normalize, data, evaluation_split(data), mesh)
    main_process = parallel.is_main_process()

    with locked(workdir) if main_process else nullcontext():
        checkpoints = checkpoint.open_checkpoints(workdir / "checkpoints", config.keep_checkpoints)
        try:
            state = checkpoint.restore_latest(checkpoints, template, mesh, set_aside=True)
            if state is None:
                state = init_state(config, model, data.image_shape, mesh)
            start = int(state.step)
            if start % config.steps_per_dispatch:
                raise UserError(
                    f"the run stopped at step {start}, which is not a multiple of config.steps_per_dispatch "
                    f"{config.steps_per_dispatch}; go on with 1, or another divisor of {start}"
                )
            writer = None
            if main_process:
                # A finished run keeps what it says of how it came about.
                if start < config.steps or not (workdir / "environment.json").exists():
                    prepare_workdir(workdir, config, normalize, data.class_names)
                writer = MetricsWriter(workdir, start, config.steps)
                if start:
                    print(f"going on from step {start} in {workdir}", file=sys.stderr)
            try:
                recompute = partial(recompute_batch_stats, config, model, normalize, data, mesh)
                state = _run_steps(config, mesh, data, train_step, recompute, evaluate, state, checkpoints, writer)
            finally:
                if writer:
                    writer.close()
                    title = f"{config.model.name} on {config.data.name}"
                    plot_errors(workdir / "metrics.jsonl", workdir / "errors.png", title)
        finally:
            checkpoint.close(checkpoints)
    if main_process:
        print(f"trained to step {int(state.step)}; the error curves are in {workdir / 'errors.png'}", file=sys.stderr)
    return state


def _run_steps(
    config: ConfigDict,
    mesh: Mesh,
    data: Data,
    train_step: TrainStep,
    recompute_batch_stats: Callable[[TrainState], TrainState],
    evaluate: Evaluator,
    state: TrainState,
    checkpoints: checkpoint.Checkpoints,
    writer: MetricsWriter | None,
) -> TrainState:
    start, stride = int(state.step), config.steps_per_dispatch
    split, inputs = training_inputs(config, data, mesh, start, config.steps)
    log = MetricsLog(writer, start, config.batch_size)
    previous = None

    with stop_signals() as received:
        for done, batches in zip(range(start + stride, config.steps + 1, stride), inputs, strict=True):
            state, metrics = train_step(state, split, batches)
            # One call ahead of the device keeps it busy; further ahead, a stop would have to wait for all of them.
            jax.block_until_ready(previous)
            previous = metrics
            log.write(log.fetch())  # The metrics of the call before.
            if writer:
                writer.advance(stride)

            last = done >= config.steps
            evaluating = done % config.eval_every == 0 or last
            saving = done % config.checkpoint_every == 0 or evaluating
            if done % config.log_every == 0 or saving:
                log.hold(done, metrics)
            stopping = checkpoint.stop_requested(checkpoints, done, received)
            if not (saving or stopping):
                continue
            check_finite(metrics)
            record, evaluation = log.fetch(), None
            if last and config.bn_recompute_batches:
                state = recompute_batch_stats(state)
            if evaluating:
                evaluation = error_rates(evaluate(state.variables))
                name = evaluation_split(data)
                record |= {f"{name}_error": evaluation["top1_error"], f"{name}_loss": evaluation["loss"]}
                if config.schedule.name == "plateau":
                    state = step_plateau(config, state, evaluation["top1_error"], mesh)
            # The record must be on disk before the checkpoint: a kill in between then leaves no gap in it.
            log.write(record)
            checkpoint.save(checkpoints, done, state, evaluation)
            if stopping:
                raise Stopped(received[0] if received else signal.SIGTERM, done)
            log.restart_clock()
    return state
