"""Training and inference steps on one batch that stays on the device: ours and naive Flax's.

Each function compiles, warms up and returns ``run(n)``, which takes n steps and returns images/s. Training is SGD with
momentum and weight decay on random labels with a small learning rate: constant labels or a diverging loss produce
denormals, which would slow PyTorch several times on a CPU.
"""

import contextlib
import io
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import optax

from benchmarks.naive_flax import NaiveResNet
from benchmarks.task import LEARNING_RATE, Task
from benchmarks.timing import Run, timed
from resnet_jax import parallel
from resnet_jax.config import make_model
from resnet_jax.models import create_model, onednn
from resnet_jax.train.loop import train
from resnet_jax.train.schedules import make_schedule
from resnet_jax.train.state import init_state
from resnet_jax.train.step import train_step
from resnet_jax.writers import read_metrics


def ours_training(task: Task, with_onednn: bool = True, steps_per_call: int = 1) -> Run:
    """The trainer's own step; ``steps_per_call`` of them in a loop in one call."""
    config, mesh = task.config(), parallel.data_mesh()
    model, schedule = make_model(config, 1000 if task.imagenet else 10), make_schedule(config)
    batch = parallel.to_global(task.batch(), parallel.sharded_batch(mesh))

    def steps(state: Any, batch: Any) -> Any:
        one = lambda state, _: train_step(config, model, schedule, state, batch)  # noqa: E731
        return one(state, None) if steps_per_call == 1 else jax.lax.scan(one, state, length=steps_per_call)

    state = init_state(config, model, (task.size, task.size, 3), mesh)
    with nullcontext() if with_onednn else _without_onednn():
        compiled = jax.jit(steps, donate_argnums=0).lower(state, batch).compile()

    def run(num_steps: int) -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(-(-num_steps // steps_per_call)):
            state, _ = compiled(state, batch)
        jax.block_until_ready(state)
        return -(-num_steps // steps_per_call) * steps_per_call * task.batch_size / (time.perf_counter() - start)

    run(3 * steps_per_call)
    return run


def planned_memory(task: Task) -> int:
    """Bytes that XLA plans for a training step: its arguments, results and temporaries."""
    config, mesh = task.config(), parallel.data_mesh()
    model, schedule = make_model(config, 1000 if task.imagenet else 10), make_schedule(config)
    shape = (task.batch_size, task.size, task.size, 3)
    batch = {"image": jax.ShapeDtypeStruct(shape, jnp.float32), "label": jax.ShapeDtypeStruct(shape[:1], jnp.int32)}
    state = jax.eval_shape(lambda: init_state(config, model, shape[1:], mesh))
    step = jax.jit(lambda state, batch: train_step(config, model, schedule, state, batch), donate_argnums=0)
    plan: Any = step.lower(state, batch).compile().memory_analysis()
    return plan.temp_size_in_bytes + plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes


def ours_trainer(task: Task) -> Run:
    """The whole trainer, with its input, record and progress bar, on the digits at 32 x 32: what it reports."""

    def run(num_steps: int) -> float:
        config = task.config()
        config.data.name = "digits"
        # The first interval holds the compilation, and the last ends in an evaluation that is not timed.
        config.steps = config.eval_every = config.checkpoint_every = 3 * num_steps
        config.log_every = num_steps
        with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stderr(io.StringIO()):
            train(config, Path(workdir))
            records = read_metrics(Path(workdir) / "metrics.jsonl")
        return statistics.median(record["images_per_second"] for record in records[1:])

    return run


def ours_inference(task: Task, with_onednn: bool = True) -> Run:
    """Logits from images."""
    config = task.config()
    model = make_model(config, 1000 if task.imagenet else 10)
    images = jnp.asarray(task.batch()["image"])
    variables = model.init(jax.random.key(0), images[:1])
    with nullcontext() if with_onednn else _without_onednn():
        compiled = jax.jit(model.apply).lower(variables, images).compile()
    return timed(lambda: compiled(variables, images), task.batch_size, jax.block_until_ready)


def naive_training(task: Task) -> Run:
    """Flax's own layers, a step written in the usual few lines."""
    model, batch = _naive_model(task), jax.tree.map(jnp.asarray, task.batch())
    optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(LEARNING_RATE, 0.9))

    def loss_fn(params: Any, batch_stats: Any, batch: Any) -> Any:
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updated = model.apply(variables, batch["image"], train=True, mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        return loss, updated["batch_stats"]

    def step(state: Any, batch: Any) -> Any:
        params, batch_stats, opt_state = state
        (_, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch_stats, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), batch_stats, opt_state

    variables = model.init(jax.random.key(0), batch["image"][:1])
    state = variables["params"], variables["batch_stats"], optimizer.init(variables["params"])
    compiled = jax.jit(step, donate_argnums=0)

    def call() -> Any:
        nonlocal state
        state = compiled(state, batch)
        return state

    return timed(call, task.batch_size, jax.block_until_ready)


def naive_inference(task: Task) -> Run:
    """Logits from images, of Flax's own layers."""
    model, images = _naive_model(task), jnp.asarray(task.batch()["image"])
    variables = model.init(jax.random.key(0), images[:1])
    compiled = jax.jit(model.apply)
    return timed(lambda: compiled(variables, images), task.batch_size, jax.block_until_ready)


def _without_onednn() -> Any:
    """XLA's own convolutions in what is traced meanwhile."""
    return mock.patch.object(onednn, "library", return_value=None)


def _naive_model(task: Task) -> NaiveResNet:
    model = create_model(task.model)
    return NaiveResNet(model.stage_sizes, task.width or model.width, model.num_classes, task.imagenet)
