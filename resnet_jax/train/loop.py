"""The training run: set-up, the loop over steps with its evaluations and checkpoints, and an orderly end."""

import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnet_jax import parallel
from resnet_jax.analysis.curves import plot_errors
from resnet_jax.config import make_model, refuse_change, validate
from resnet_jax.data.augment import normalization
from resnet_jax.data.resident import Dataset, batch_indices, load_dataset
from resnet_jax.errors import UserError
from resnet_jax.evaluation.classify import EvalStep, evaluate, make_eval_step
from resnet_jax.train import checkpoint
from resnet_jax.train.metrics_log import MetricsLog, check_finite
from resnet_jax.train.signals import Stopped, stop_signals
from resnet_jax.train.state import TrainState, init_state
from resnet_jax.train.step import ResidentStep, make_resident_step
from resnet_jax.train.workdir import locked, prepare_workdir
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
    dataset = load_dataset(config)
    model = make_model(config, dataset.num_classes)
    image_shape = dataset.train.images.shape[1:]
    template = jax.eval_shape(lambda: init_state(config, model, image_shape, mesh))
    mean, std = normalization(config, dataset.train)
    resident_step = make_resident_step(config, model, mean, std, mesh)
    eval_step = make_eval_step(model, mean, std, mesh)
    main_process = parallel.is_main_process()

    with locked(workdir) if main_process else nullcontext():
        checkpoints = checkpoint.open_checkpoints(workdir / "checkpoints", config.keep_checkpoints)
        try:
            state = checkpoint.restore_latest(checkpoints, template, mesh, set_aside=True)
            if state is None:
                state = init_state(config, model, image_shape, mesh)
            start = int(state.step)
            if start % config.steps_per_dispatch:
                raise UserError(
                    f"the run stopped at step {start}, which is not a multiple of config.steps_per_dispatch "
                    f"{config.steps_per_dispatch}; go on with 1, or another divisor of {start}"
                )
            writer = None
            if main_process:
                prepare_workdir(workdir, config)
                writer = MetricsWriter(workdir, start, config.steps)
                if start:
                    print(f"going on from step {start} in {workdir}", file=sys.stderr)
            try:
                state = _run_steps(config, mesh, dataset, resident_step, eval_step, state, checkpoints, writer)
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
    dataset: Dataset,
    resident_step: ResidentStep,
    eval_step: EvalStep,
    state: TrainState,
    checkpoints: checkpoint.Checkpoints,
    writer: MetricsWriter | None,
) -> TrainState:
    eval_name = "test" if dataset.validation is None else "validation"
    train_split, eval_split = parallel.to_global((dataset.train, dataset.split(eval_name)), parallel.replicated(mesh))
    index_sharding = parallel.sharded_batch(mesh, axis=1)
    start, stride = int(state.step), config.steps_per_dispatch
    log = MetricsLog(writer, start, config.batch_size)
    previous = None

    with stop_signals() as received:
        for first in range(start, config.steps, stride):
            batches = [
                batch_indices(config.seed, step, len(dataset.train), config.batch_size)
                for step in range(first, first + stride)
            ]
            indices = parallel.to_global(np.stack(batches), index_sharding)
            state, metrics = resident_step(state, train_split, indices)
            # One call ahead of the device keeps it busy; further ahead, a stop would have to wait for all of them.
            jax.block_until_ready(previous)
            previous = metrics
            log.write(log.fetch())  # The metrics of the call before.
            done = first + stride
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
            if evaluating:
                evaluation = evaluate(eval_step, state.variables, eval_split, config.eval_batch_size, mesh)
                record |= {f"{eval_name}_error": evaluation["top1_error"], f"{eval_name}_loss": evaluation["loss"]}
            # The record must be on disk before the checkpoint: a kill in between then leaves no gap in it.
            log.write(record)
            checkpoint.save(checkpoints, done, state, evaluation)
            if stopping:
                raise Stopped(received[0] if received else signal.SIGTERM, done)
            log.restart_clock()
    return state
