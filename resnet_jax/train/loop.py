"""The training run: set-up, the loop over steps with its evaluations and checkpoints, and an orderly end."""

import signal
import sys
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from resnet_jax import parallel
from resnet_jax.analysis.curves import plot_errors
from resnet_jax.config import make_model, refuse_change, validate
from resnet_jax.data.augment import normalization
from resnet_jax.data.resident import batch_indices, load_dataset
from resnet_jax.errors import UserError
from resnet_jax.evaluation.classify import evaluate, make_eval_step
from resnet_jax.train import checkpoint
from resnet_jax.train.metrics_log import MetricsLog, check_finite
from resnet_jax.train.signals import Stopped, stop_signals
from resnet_jax.train.state import TrainState, init_state
from resnet_jax.train.step import make_resident_step
from resnet_jax.train.workdir import prepare_workdir
from resnet_jax.writers import MetricsWriter


def train(config: ConfigDict, workdir: Path, allow_config_change: bool = False) -> TrainState:
    """Trains until config.steps, going on from the newest checkpoint in ``workdir`` if there is one.

    The result depends on the config alone: a run stopped or killed anywhere and started again ends with the same
    parameters to the bit, on the same devices. Nothing is written before config, data and model are found sound.

    Raises UserError for faults in the config, the data, the workdir or its checkpoints, and when the loss stops being
    finite; Stopped after SIGTERM or SIGINT, with the state saved.
    """
    mesh = parallel.data_mesh()
    validate(config, mesh.size)
    if not allow_config_change:
        refuse_change(config, workdir / "config.json")
    dataset = load_dataset(config)
    model = make_model(config, dataset.num_classes)
    mean, std = normalization(config, dataset.train)
    resident_step = make_resident_step(config, model, mean, std, mesh)
    eval_step = make_eval_step(model, mean, std, mesh)
    state = init_state(config, model, dataset.train.images.shape[1:], mesh)

    if parallel.is_main_process():
        prepare_workdir(workdir, config)
    checkpoints = checkpoint.open_checkpoints(workdir / "checkpoints", config.keep_checkpoints)
    state = checkpoint.restore_latest(checkpoints, state, mesh, set_aside=True) or state
    start = int(state.step)
    stride = config.steps_per_dispatch
    if start % stride:
        raise UserError(
            f"the run stopped at step {start}, which is not a multiple of config.steps_per_dispatch {stride}"
        )
    if start and parallel.is_main_process():
        print(f"going on from step {start} in {workdir}", file=sys.stderr)

    eval_name = "test" if dataset.validation is None else "validation"
    train_split, eval_split = parallel.to_global((dataset.train, dataset.split(eval_name)), parallel.replicated(mesh))
    index_sharding = parallel.sharded_batch(mesh, axis=1)
    writer = MetricsWriter(workdir, start, config.steps) if parallel.is_main_process() else None
    log = MetricsLog(writer, start, config.batch_size)

    try:
        with stop_signals() as received:
            for first in range(start, config.steps, stride):
                batches = [
                    batch_indices(config.seed, step, len(dataset.train), config.batch_size)
                    for step in range(first, first + stride)
                ]
                indices = parallel.to_global(np.stack(batches), index_sharding)
                state, metrics = resident_step(state, train_split, indices)
                done = first + stride
                if writer:
                    writer.advance(stride)
                log.write(log.fetch())  # The metrics of the call before; the device is busy with this one meanwhile.

                last = done >= config.steps
                if done % config.log_every == 0 or last:
                    log.hold(done, metrics)
                evaluating = done % config.eval_every == 0 or last
                stopping = checkpoint.stop_requested(checkpoints, done, received)
                if not (evaluating or stopping or done % config.checkpoint_every == 0):
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
    finally:
        checkpoints.close()  # Waits for a save under way.
        if writer:
            writer.close()
    if parallel.is_main_process():
        plot_errors(workdir / "metrics.jsonl", workdir / "errors.png", f"{config.model.name} on {config.data.name}")
        print(f"trained to step {int(state.step)}; the error curves are in {workdir / 'errors.png'}", file=sys.stderr)
    return state
