"""States of a tiny network, saved and restored."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import parallel
from resnet_jax.models.zoo import create_model
from resnet_jax.tasks.classification import ClassificationTask
from resnet_jax.train import checkpoint
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.state import init_state

# When one read of a restore fails, Orbax drops the others: some never start, and some end after their event loop.
DROPPED_READS = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collect_dropped_coroutines"),
]


def template(width=4, stage_sizes=(1,)):
    """The shapes and dtypes of a tiny network's state."""
    task = ClassificationTask(create_model("resnet20", width=width, stage_sizes=stage_sizes))
    mesh = parallel.data_mesh()
    return jax.eval_shape(lambda: init_state(task, SGD().make(), 0, 0.0, 0.0, (32, 32, 3), mesh))


@lru_cache
def host_state(seed):
    """A state of random bits, so that no two leaves or states are alike: NaN, infinities and denormals among them."""
    rng = np.random.default_rng(seed)

    def leaf(like):
        if like.dtype == jnp.bool_:
            return rng.random(like.shape) < 0.5
        return np.frombuffer(rng.bytes(like.size * like.dtype.itemsize), like.dtype).reshape(like.shape)

    return jax.tree.map(leaf, template())


def state_at(step, mesh):
    return parallel.to_global(host_state(step).replace(step=np.int32(step)), parallel.replicated(mesh))


def bits(state):
    return [(leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(state)]


def save_steps(directory, steps, mesh, keep=5):
    manager = checkpoint.open_checkpoints(directory, keep, "top1_error")
    for step in steps:
        checkpoint.save(manager, step, state_at(step, mesh), {"top1_error": 50.0 - step})
    manager.close()


def restore(directory, mesh, set_aside=True, read_only=False):
    manager = checkpoint.open_checkpoints(directory, 5, "top1_error", read_only=read_only)
    try:
        return checkpoint.restore_latest(manager, template(), mesh, set_aside)
    finally:
        manager.close()
