"""The training step: pure, and whole on this page."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnet_jax import parallel
from resnet_jax.data.augment import augment
from resnet_jax.data.normalization import Normalization
from resnet_jax.data.resident import Split, gather
from resnet_jax.models import Model
from resnet_jax.train.schedules import Schedule, make_schedule, sgd
from resnet_jax.train.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Split | None, Any], tuple[TrainState, Metrics]]
# How much of the running training error each step keeps: a mean over about 50 batches.
ERROR_MEMORY = 0.98


def train_step(
    config: ConfigDict, model: Model, schedule: Schedule, state: TrainState, batch: Batch
) -> tuple[TrainState, Metrics]:
    """One update on a batch of normalised images (B, H, W, 3) and labels (B,).

    The metrics are scalars: loss and top-1 error (in [0, 1]) averaged since the last multiple of config.log_every
    steps, the learning rate used, and the state's nonfinite_step.
    """
    loss, error, batch_stats, grads = gradients(config, model, state, batch)
    learning_rate = schedule(state.step) * state.plateau.scale
    learning_rate = jnp.where(state.warming_up, config.schedule.warmup_learning_rate, learning_rate)
    updates, opt_state = sgd(learning_rate, config).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = moving_average(config, state, {"params": params, "batch_stats": batch_stats})

    train_error = ERROR_MEMORY * state.train_error + (1 - ERROR_MEMORY) * error
    new_interval = state.step % config.log_every == 0
    sums = jax.tree.map(lambda total: jnp.where(new_interval, 0, total), state.sums)
    sums = {"loss": sums["loss"] + loss, "error": sums["error"] + error, "count": sums["count"] + 1}
    finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm((grads, params, batch_stats)))
    first_nonfinite = (state.nonfinite_step < 0) & ~finite
    new_state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema=ema,
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


def gradients(
    config: ConfigDict, model: Model, state: TrainState, batch: Batch
) -> tuple[jax.Array, jax.Array, Any, Any]:
    """Loss, top-1 error in [0, 1], new batch statistics and gradients on a batch.

    With config.accumulate_steps of k the batch is taken in k parts, one after the other, and all four are means over
    them. Batch statistics in the forward pass then are those of a part.
    """

    def loss_fn(params: Any, part: Batch, key: jax.Array) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        rngs = {"dropout": key}
        logits, updated = model.apply(variables, part["image"], train=True, mutable=["batch_stats"], rngs=rngs)
        if config.label_smoothing:
            targets = optax.smooth_labels(jax.nn.one_hot(part["label"], logits.shape[-1]), config.label_smoothing)
            loss = optax.softmax_cross_entropy(logits, targets).mean()
        else:
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, part["label"]).mean()
        error = jnp.mean(jnp.argmax(logits, axis=-1) != part["label"])
        return loss, (error, updated.get("batch_stats", {}))

    def one_part(part: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Any, Any]:
        (loss, (error, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, part, key)
        return loss, error, batch_stats, grads

    k = config.accumulate_steps
    # Apart from the augmentation's keys of this step, which are made without the 3.
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), state.step), 3)
    keys = jax.random.split(key, k)
    if k == 1:
        return one_part(batch, keys[0])
    # Every k-th example makes a part, so that each device has its share of every part.
    parts = jax.tree.map(lambda x: x.reshape(x.shape[0] // k, k, *x.shape[1:]).swapaxes(0, 1), batch)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(one_part, batch, keys[0]))
    add = lambda total, part: (jax.tree.map(lambda a, b: a + b / k, total, one_part(*part)), None)  # noqa: E731
    return jax.lax.scan(add, zeros, (parts, keys))[0]


def moving_average(config: ConfigDict, state: TrainState, variables: Any) -> Any:
    """The new ``state.ema``. The decay climbs to config.ema_decay, or the random start would stay in it for long."""
    if not config.ema_decay:
        return state.ema
    decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))
    return jax.tree.map(lambda mean, new: decay * mean + (1 - decay) * new, state.ema, variables)


def training_batch(
    config: ConfigDict, normalization: Normalization, split: Split | None, batch: Any, step: jax.Array
) -> Batch:
    """The normalised and augmented batch of a step, out of what ``feed.training_inputs`` gives for it.

    The augmentation is a function of (config.seed, step), so a restart repeats it.
    """
    batch = batch if split is None else gather(split, batch)
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    images = augment(config, key, normalization(batch["image"]), normalization.std)
    return {"image": images, "label": batch["label"]}


def make_train_step(config: ConfigDict, model: Model, normalization: Normalization, mesh: Mesh) -> TrainStep:
    """Compiles ``(state, split, batches) -> (state, metrics)`` for the inputs of ``feed.training_inputs``.

    The leading axis k of ``batches`` is that of consecutive steps, done in one call; the metrics are the last step's.
    The state is donated.
    """
    schedule = make_schedule(config)

    def one_step(split: Split | None, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        return train_step(
            config, model, schedule, state, training_batch(config, normalization, split, batch, state.step)
        )

    def steps(state: TrainState, split: Split | None, batches: Any) -> tuple[TrainState, Metrics]:
        if config.steps_per_dispatch == 1:
            return one_step(split, state, jax.tree.map(lambda x: x[0], batches))
        state, metrics = jax.lax.scan(partial(one_step, split), state, batches)
        return state, jax.tree.map(lambda values: values[-1], metrics)

    return jax.jit(steps, donate_argnums=0, out_shardings=parallel.replicated(mesh))
