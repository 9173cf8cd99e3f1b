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
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.naive_flax import NaiveResNet
from benchmarks.timing import Run, timed
from benchmarks.workload import LEARNING_RATE, Workload, training
from resnet_jax import parallel
from resnet_jax.config import load_config, override
from resnet_jax.experiment.training import train
from resnet_jax.kernels import Kernels
from resnet_jax.train.writers import read_metrics

_RECIPES = Path(__file__).resolve().parent.parent / "configs" / "cifar10.py"


def ours_training(workload: Workload, kernels: Kernels, steps_per_call: int = 1) -> Run:
    """The trainer's own step; ``steps_per_call`` of them in a loop in one call."""
    mesh = parallel.data_mesh()
    step, new_state = training(workload, kernels, mesh)
    batch = parallel.to_global(workload.batch(), parallel.sharded_batch(mesh))

    def steps(state: Any, batch: Any) -> Any:
        if steps_per_call == 1:
            return step(state, batch)
        return jax.lax.scan(lambda state, _: step(state, batch), state, length=steps_per_call)

    state = new_state()
    compiled = jax.jit(steps, donate_argnums=0).lower(state, batch).compile()

    def run(num_steps: int) -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(-(-num_steps // steps_per_call)):
            state, _ = compiled(state, batch)
        jax.block_until_ready(state)
        return -(-num_steps // steps_per_call) * steps_per_call * workload.batch_size / (time.perf_counter() - start)

    run(3 * steps_per_call)
    return run


def planned_memory(workload: Workload, kernels: Kernels) -> int:
    """Bytes that XLA plans for a training step: its arguments, results and temporaries."""
    step, new_state = training(workload, kernels, parallel.data_mesh())
    shape = (workload.batch_size, *workload.image_shape)
    batch = {"image": jax.ShapeDtypeStruct(shape, jnp.float32), "label": jax.ShapeDtypeStruct(shape[:1], jnp.int32)}
    lowered = jax.jit(step, donate_argnums=0).lower(jax.eval_shape(new_state), batch)
    plan: Any = lowered.compile().memory_analysis()
    return plan.temp_size_in_bytes + plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes


def ours_trainer(workload: Workload) -> Run:
    """The whole trainer, with its input, record and progress bar, on the digits at 32 x 32: what it reports."""

    def run(num_steps: int) -> float:
        changes = {
            "data.name": "digits",
            "batch_size": workload.batch_size,
            "model.bn_group_size": None,
            "schedule.name": "constant",
            "optimizer.learning_rate": LEARNING_RATE,
            # The first interval holds the compilation, and the last ends in an evaluation that is not timed.
            **dict.fromkeys(("steps", "eval_every", "checkpoint_every"), 3 * num_steps),
            "log_every": num_steps,
        }
        config = override(load_config(f"{_RECIPES}:{workload.model}"), changes)
        with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stderr(io.StringIO()):
            train(config, Path(workdir))
            records = read_metrics(Path(workdir) / "metrics.jsonl")
        return statistics.median(record["images_per_second"] for record in records[1:])

    return run


def ours_inference(workload: Workload, kernels: Kernels) -> Run:
    """Logits from images."""
    model = workload.network(kernels)
    images = jnp.asarray(workload.batch()["image"])
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    compiled = jax.jit(model.apply).lower(variables, images).compile()
    return timed(lambda: compiled(variables, images), workload.batch_size, jax.block_until_ready)


def naive_training(workload: Workload) -> Run:
    """Flax's own layers, a step written in the usual few lines."""
    model, batch = _naive_model(workload), jax.tree.map(jnp.asarray, workload.batch())
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

    variables = jax.jit(model.init)(jax.random.key(0), batch["image"][:1])
    state = variables["params"], variables["batch_stats"], optimizer.init(variables["params"])
    compiled = jax.jit(step, donate_argnums=0)

    def call() -> Any:
        nonlocal state
        state = compiled(state, batch)
        return state

    return timed(call, workload.batch_size, jax.block_until_ready)


def naive_inference(workload: Workload) -> Run:
    """Logits from images, of Flax's own layers."""
    model, images = _naive_model(workload), jnp.asarray(workload.batch()["image"])
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    compiled = jax.jit(model.apply)
    return timed(lambda: compiled(variables, images), workload.batch_size, jax.block_until_ready)


def _naive_model(workload: Workload) -> NaiveResNet:
    return NaiveResNet(workload.stage_sizes, workload.channels, workload.num_classes, workload.imagenet)
