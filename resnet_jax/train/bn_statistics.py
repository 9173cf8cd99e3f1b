"""Batch statistics over many batches, after training, in place of the moving averages (the authors' released note)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from resnet_jax import parallel, stopping
from resnet_jax.data.dataset import Dataset
from resnet_jax.data.feed import training_inputs
from resnet_jax.tasks.task import Task
from resnet_jax.train.state import TrainState
from resnet_jax.train.step import loss_key, parts_of, prepare_key


def recompute_batch_stats(
    task: Task,
    dataset: Dataset,
    seed: int,
    batch_size: int,
    count: int,
    mesh: Mesh,
    state: TrainState,
    accumulate_steps: int = 1,
    resident: Any = None,
) -> TrainState:
    """The state with the statistics that its parameters have over the next ``count`` training batches.

    The batches are those that training would continue with, each taken in ``accumulate_steps`` parts as there, and
    ``resident`` is what it has on the devices already. Mean and variance are those of all parts together: the variance
    within them, and between their means. Where there is a moving average of the parameters, it is the one that is
    evaluated, and its statistics are recomputed. Between two batches it may be interrupted (``stopping``).
    """

    def moments(variables: Any, resident: Any, batches: Any, step: jax.Array) -> Any:
        batch = dataset.gather(resident, jax.tree.map(lambda x: x[0], batches))
        batch = task.prepare(prepare_key(seed, step), batch)
        if accumulate_steps == 1:
            batch_stats = task.statistics(variables, batch, loss_key(seed, step))
            return batch_stats, _second_moments(batch_stats, sign=1)
        keys = jax.random.split(loss_key(seed, step), accumulate_steps)
        of_parts = jax.lax.map(
            lambda part: task.statistics(variables, *part), (parts_of(batch, accumulate_steps), keys)
        )
        means = jax.tree.map(lambda leaf: leaf.mean(axis=0), _second_moments(of_parts, sign=1))
        return jax.tree.map(lambda leaf: leaf[0], of_parts), means

    compiled = jax.jit(moments, out_shardings=parallel.replicated(mesh))
    start = int(state.step)
    resident, inputs = training_inputs(dataset, seed, batch_size, 1, start, start + count, mesh, resident)
    total: Any = None
    moved: set[tuple[str, ...]] = set()
    for step, batches in enumerate(inputs, start=start):
        stopping.point()
        of_batch, new = compiled(state.variables, resident, batches, jnp.int32(step))
        if total is None:
            moved = _moved(of_batch, state.variables["batch_stats"])
        total = new if total is None else jax.tree.map(jnp.add, total, new)
    recomputed = flatten_dict(_second_moments(jax.tree.map(lambda leaf: leaf / count, total), sign=-1))
    batch_stats = flatten_dict(state.variables["batch_stats"])
    batch_stats |= {place: leaf for place, leaf in recomputed.items() if place[:-1] in moved}
    batch_stats = unflatten_dict(batch_stats)
    if state.ema:
        return dataclasses.replace(state, ema=state.ema | {"batch_stats": batch_stats})
    return dataclasses.replace(state, batch_stats=batch_stats)


def _moved(batch_stats: Any, given: Any) -> set[tuple[str, ...]]:
    """The modules whose statistics a batch changed: not those that are frozen, or of a part that is not trained."""
    before = flatten_dict(given)
    return {place[:-1] for place, leaf in flatten_dict(batch_stats).items() if not bool((leaf == before[place]).all())}


def _second_moments(batch_stats: Any, sign: int) -> Any:
    """With ``sign`` 1 each variance becomes the mean square, which can be averaged over batches; -1 undoes it."""
    flat = flatten_dict(batch_stats)
    for path in flat:
        if path[-1] == "var":
            # Rounding can push a difference below zero.
            flat[path] = jnp.maximum(flat[path] + sign * flat[(*path[:-1], "mean")] ** 2, 0)
    return unflatten_dict(flat)
