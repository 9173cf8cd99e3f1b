"""The training step: pure, and whole on this page."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnet_jax import parallel
from resnet_jax.data.augment import augment, normalize
from resnet_jax.data.resident import Split, gather
from resnet_jax.models.resnet import ResNet
from resnet_jax.train.schedules import Schedule, make_schedule, sgd
from resnet_jax.train.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
ResidentStep = Callable[[TrainState, Split, jax.Array], tuple[TrainState, Metrics]]
# How much of the running training error each step keeps: a mean over about 50 batches.
ERROR_MEMORY = 0.98


def train_step(
    config: ConfigDict, model: ResNet, schedule: Schedule, state: TrainState, batch: Batch
) -> tuple[TrainState, Metrics]:
    """One update on a batch of normalised images (B, H, W, 3) and labels (B,).

    The metrics are scalars: loss and top-1 error (in [0, 1]) averaged since the last multiple of config.log_every
    steps, the learning rate used, and the state's nonfinite_step.
    """

    def loss_fn(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updated = model.apply(variables, batch["image"], train=True, mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        return loss, (logits, updated["batch_stats"])

    (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    learning_rate = schedule(state.step)
    learning_rate = jnp.where(state.warming_up, config.schedule.warmup_learning_rate, learning_rate)
    updates, opt_state = sgd(learning_rate, config).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    error = jnp.mean(jnp.argmax(logits, axis=-1) != batch["label"])
    train_error = ERROR_MEMORY * state.train_error + (1 - ERROR_MEMORY) * error
    new_interval = state.step % config.log_every == 0
    sums = jax.tree.map(lambda total: jnp.where(new_interval, 0, total), state.sums)
    sums = {"loss": sums["loss"] + loss, "error": sums["error"] + error, "count": sums["count"] + 1}
    finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm((grads, params, batch_stats)))
    first_nonfinite = (state.nonfinite_step < 0) & ~finite
    new_state = TrainState(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        train_error=train_error,
        warming_up=state.warming_up & (train_error >= config.schedule.warmup_error),
        sums=sums,
        nonfinite_step=jnp.where(first_nonfinite, state.step + 1, state.nonfinite_step),
    )
    metrics = {
        "train_loss": sums["loss"] / sums["count"],
        "train_error": sums["error"] / sums["count"],
        "learning_rate": learning_rate,
        "nonfinite_step": new_state.nonfinite_step,
    }
    return new_state, metrics


def make_resident_step(
    config: ConfigDict, model: ResNet, mean: np.ndarray, std: np.ndarray, mesh: Mesh
) -> ResidentStep:
    """Compiles ``(state, split, indices) -> (state, metrics)`` for a data set that lives on the devices.

    ``indices`` (k, B) name the examples of k consecutive steps, done in one call; the metrics are the last step's. The
    augmentation of step s is a function of (config.seed, s), so a restart repeats it. The state is donated.
    """
    schedule = make_schedule(config)
    seed_key = jax.random.key(config.seed)

    def one_step(split: Split, state: TrainState, indices: jax.Array) -> tuple[TrainState, Metrics]:
        batch = gather(split, indices)
        images = normalize(batch["image"], mean, std)
        images = augment(jax.random.fold_in(seed_key, state.step), images, config.data.pad, config.data.flip)
        return train_step(config, model, schedule, state, {"image": images, "label": batch["label"]})

    def steps(state: TrainState, split: Split, indices: jax.Array) -> tuple[TrainState, Metrics]:
        if indices.shape[0] == 1:
            return one_step(split, state, indices[0])
        state, metrics = jax.lax.scan(partial(one_step, split), state, indices)
        return state, jax.tree.map(lambda values: values[-1], metrics)

    return jax.jit(steps, donate_argnums=0, out_shardings=parallel.replicated(mesh))
