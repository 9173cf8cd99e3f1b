"""Batch statistics over many batches, after training, in place of the moving averages (the authors' released note)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnet_jax import parallel
from resnet_jax.data.dataset import Data
from resnet_jax.data.feed import training_inputs
from resnet_jax.data.normalization import Normalization
from resnet_jax.data.resident import Split
from resnet_jax.models import Model
from resnet_jax.train.state import TrainState
from resnet_jax.train.step import training_batch


def recompute_batch_stats(
    config: ConfigDict, model: Model, normalization: Normalization, data: Data, mesh: Mesh, state: TrainState
) -> TrainState:
    """The state with the statistics that its parameters have over config.bn_recompute_batches training batches.

    The batches are those that training would go on with. Mean and variance are those of all of them together: the
    variance within the batches, and between their means. Where there is a moving average of the parameters, it is the
    one that is evaluated, and its statistics are recomputed.
    """
    # Its running statistics are just those of the last batch, all of it: those of groups leave out what lies between.
    forgetful = model.clone(bn_momentum=0.0, bn_group_size=None)

    def moments(variables: Any, split: Split | None, batches: Any, step: jax.Array) -> Any:
        batch = training_batch(config, normalization, split, jax.tree.map(lambda x: x[0], batches), step)
        _, updated = forgetful.apply(variables, batch["image"], train=True, mutable=["batch_stats"])
        return _second_moments(updated["batch_stats"], sign=1)

    compiled = jax.jit(moments, out_shardings=parallel.replicated(mesh))
    count = config.bn_recompute_batches
    one_at_a_time = config.copy_and_resolve_references()
    one_at_a_time.steps_per_dispatch = 1
    split, inputs = training_inputs(one_at_a_time, data, mesh, config.steps, config.steps + count)
    total: Any = None
    for step, batches in enumerate(inputs, start=config.steps):
        new = compiled(state.variables, split, batches, jnp.int32(step))
        total = new if total is None else jax.tree.map(jnp.add, total, new)
    batch_stats = _second_moments(jax.tree.map(lambda leaf: leaf / count, total), sign=-1)
    if state.ema:
        return dataclasses.replace(state, ema=state.ema | {"batch_stats": batch_stats})
    return dataclasses.replace(state, batch_stats=batch_stats)


def _second_moments(batch_stats: Any, sign: int) -> Any:
    """With ``sign`` 1 each variance becomes the mean square, which can be averaged over batches; -1 undoes it."""
    flat = flatten_dict(batch_stats)
    for path in flat:
        if path[-1] == "var":
            # Rounding can push a difference below zero.
            flat[path] = jnp.maximum(flat[path] + sign * flat[(*path[:-1], "mean")] ** 2, 0)
    return unflatten_dict(flat)
