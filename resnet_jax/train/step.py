"""The training step: pure, and whole on this page."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from resnet_jax import parallel
from resnet_jax.data.dataset import Dataset
from resnet_jax.tasks.task import Batch, Task
from resnet_jax.train.optimizers.masked import apply_updates, without_frozen
from resnet_jax.train.schedules import Schedule
from resnet_jax.train.state import TrainState

Metrics: TypeAlias = dict[str, jax.Array]
TrainStep: TypeAlias = Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]
ERROR_MEMORY = 0.98  # How much of the running training error each step keeps: a mean over about 50 batches.


class StepSettings(NamedTuple):
    """The plain values of a step. log_every: steps over which metrics are averaged."""

    seed: int = 0
    accumulate_steps: int = 1  # Gradients are averaged over this many parts of a batch, one after the other.
    ema_decay: float = 0.0  # Of the moving average of the variables; 0: none.
    ema_every: int = 1  # The average is updated after the first step and then after every so many.
    ema_start: int | None = None  # Updates up to this step make a copy. None: the decay climbs from the first step on.
    sam_radius: float = 0.0  # How far uphill the gradient is taken; 0: here.
    log_every: int = 100
    hold_error: float = 0.0  # Until the training error is below it the learning rate is at most hold_rate; 0: off.
    hold_rate: float = 0.01
    skip_nonfinite: bool = False  # A step that is not finite changes nothing but the count of such steps.


def train_step(
    task: Task,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: Schedule,
    settings: StepSettings,
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, Metrics]:
    """One update on a prepared batch.

    ``optimizer`` takes its learning rate as an argument of ``update``; ``Optimizer.make`` gives one. The
    returned metrics are scalars: loss and the task's metrics averaged since the last multiple of settings.log_every
    steps, as "train_" and their name, the learning rate used, and the state's nonfinite_step.
    """
    loss, metrics, batch_stats, grads = gradients(task, settings, state, batch)
    batch_stats = {**state.batch_stats, **batch_stats}  # Those of frozen modules are left out.
    grads = without_frozen(optimizer, grads, state.opt_state, state.params)
    if settings.sam_radius:
        grads = uphill_gradients(task, settings, state, batch, grads)
        grads = without_frozen(optimizer, grads, state.opt_state, state.params)
    learning_rate = schedule(state.step) * state.plateau.scale
    if settings.hold_error:
        held = jnp.minimum(settings.hold_rate, learning_rate)
        learning_rate = jnp.where(state.warming_up, held, learning_rate)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params, learning_rate=learning_rate)
    params = apply_updates(state.params, updates)
    ema = moving_average(settings, state, {"params": params, "batch_stats": batch_stats})

    train_error = ERROR_MEMORY * state.train_error + (1 - ERROR_MEMORY) * metrics[task.metrics[0]]
    new_interval = state.step % settings.log_every == 0
    sums = jax.tree.map(lambda total: jnp.where(new_interval, 0, total), state.sums)
    sums = {name: sums[name] + value for name, value in {"loss": loss, **metrics, "count": 1}.items()}
    finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm((grads, params, batch_stats)))
    first_nonfinite = (state.nonfinite_step < 0) & ~finite
    nonfinite_step = jnp.where(first_nonfinite, state.step + 1, state.nonfinite_step)
    if settings.skip_nonfinite:
        nonfinite_step = state.nonfinite_step - ~finite
    new_state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema=ema,
        train_error=train_error,
        warming_up=state.warming_up & (train_error >= settings.hold_error),
        sums=sums,
        nonfinite_step=nonfinite_step,
    )
    if settings.skip_nonfinite:
        new_state = unless_nonfinite(finite, new_interval, state, new_state)
        sums = new_state.sums  # Where every step of the interval was skipped, the means are 0 / 0: not a number.
    means = {f"train_{name}": sums[name] / sums["count"] for name in ("loss", *task.metrics)}
    return new_state, {**means, "learning_rate": learning_rate, "nonfinite_step": new_state.nonfinite_step}


def gradients(
    task: Task, settings: StepSettings, state: TrainState, batch: Batch
) -> tuple[jax.Array, Metrics, Any, Any]:
    """Loss, metrics, new batch statistics and gradients on a batch.

    With settings.accumulate_steps of k the batch is taken in k parts, one after the other, and all four are means
    over them. Batch statistics in the forward pass then are those of a part. Between devices the gradients are reduced
    once for each part.
    """

    def one_part(part: Batch, key: jax.Array) -> tuple[jax.Array, Metrics, Any, Any]:
        def loss_fn(params: Any) -> tuple[jax.Array, tuple[Metrics, Any]]:
            return task.loss({"params": params, "batch_stats": state.batch_stats}, part, key)

        (loss, (metrics, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return loss, metrics, batch_stats, grads

    k = settings.accumulate_steps
    keys = jax.random.split(loss_key(settings.seed, state.step), k)
    if k == 1:
        return one_part(batch, keys[0])
    parts = parts_of(batch, k)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(one_part, batch, keys[0]))
    add = lambda total, part: (jax.tree.map(lambda a, b: a + b / k, total, one_part(*part)), None)  # noqa: E731
    return jax.lax.scan(add, zeros, (parts, keys))[0]


def parts_of(batch: Batch, k: int) -> Batch:
    """A batch (B, ...) in k parts, (k, B / k, ...): every k-th example, so that each device has its share of each."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // k, k, *x.shape[1:]).swapaxes(0, 1), batch)


def unless_nonfinite(
    finite: jax.Array, new_interval: jax.Array, state: TrainState, new_state: TrainState
) -> TrainState:
    """``new_state`` where ``finite``; else ``state`` with its step and count of such steps moved on."""
    sums = jax.tree.map(lambda total: jnp.where(new_interval, 0, total), state.sums)
    skipped = dataclasses.replace(state, step=new_state.step, nonfinite_step=new_state.nonfinite_step, sums=sums)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_state, skipped)


def uphill_gradients(task: Task, settings: StepSettings, state: TrainState, batch: Batch, grads: Any) -> Any:
    """The gradients at settings.sam_radius from the parameters along ``grads`` (arXiv 2010.01412, equations 2 and 3).

    On the same batch, with the same dropout.
    """
    scale = settings.sam_radius / jnp.maximum(optax.tree.norm(grads), 1e-12)
    params = jax.tree.map(lambda weights, gradient: weights + scale * gradient, state.params, grads)
    return gradients(task, settings, dataclasses.replace(state, params=params), batch)[3]


def moving_average(settings: StepSettings, state: TrainState, variables: Any) -> Any:
    """The new ``state.ema``.

    The decay climbs to settings.ema_decay, or the random start would stay in it for long; or the average is a copy
    first, and then has the whole decay, as torchvision's.
    """
    if not settings.ema_decay:
        return state.ema
    if settings.ema_start is None:
        updates = state.step if settings.ema_every == 1 else state.step // settings.ema_every
        decay = jnp.minimum(settings.ema_decay, (1 + updates) / (10 + updates))
    else:
        decay = jnp.where(state.step < settings.ema_start, 0.0, settings.ema_decay)
    if settings.ema_every > 1:
        decay = jnp.where(state.step % settings.ema_every == 0, decay, 1.0)

    def average(mean: jax.Array, new: jax.Array) -> jax.Array:
        # What is frozen stays to the bit; the sum would round it.
        return jnp.where(new == mean, mean, decay * mean + (1 - decay) * new)

    return jax.tree.map(average, state.ema, variables)


# The two random streams of a step, functions of (seed, step), so that a restart repeats them.


def prepare_key(seed: int, step: jax.Array) -> jax.Array:
    """Of ``Task.prepare``: the transforms derive theirs from it, by names and the number 2."""
    return jax.random.fold_in(jax.random.key(seed), step)


def loss_key(seed: int, step: jax.Array) -> jax.Array:
    """Of ``Task.loss``: dropout's. The 3 keeps it apart from the transforms'."""
    return jax.random.fold_in(prepare_key(seed, step), 3)


def make_train_step(
    task: Task,
    dataset: Dataset,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: Schedule,
    settings: StepSettings,
    steps_per_dispatch: int,
    mesh: Mesh,
) -> TrainStep:
    """Compiles ``(state, resident, batches) -> (state, metrics)`` for the inputs of ``feed.training_inputs``.

    The leading axis of ``batches`` is that of ``steps_per_dispatch`` consecutive steps, done in one call; the metrics
    are the last step's. The state is donated.
    """

    def one_step(resident: Any, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        batch = task.prepare(prepare_key(settings.seed, state.step), dataset.gather(resident, batch))
        return train_step(task, optimizer, schedule, settings, state, batch)

    def steps(state: TrainState, resident: Any, batches: Any) -> tuple[TrainState, Metrics]:
        if steps_per_dispatch == 1:
            return one_step(resident, state, jax.tree.map(lambda x: x[0], batches))
        state, metrics = jax.lax.scan(partial(one_step, resident), state, batches)
        return state, jax.tree.map(lambda values: values[-1], metrics)

    return jax.jit(steps, donate_argnums=0, out_shardings=parallel.replicated(mesh))
