"""A network with dropout and without batch normalisation in the training step."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import parallel
from resnet_jax.models.zoo import create_model
from resnet_jax.tasks.classification import ClassificationTask
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.schedules import Constant
from resnet_jax.train.state import init_state
from resnet_jax.train.step import StepSettings, loss_key, train_step

TASK = ClassificationTask(create_model("vgg16", 10, stage_sizes=(1, 1), width=2, hidden=8))


def batch_of_16():
    rng = np.random.default_rng(0)
    batch = {"image": rng.normal(size=(16, 32, 32, 3)).astype(np.float32), "label": rng.integers(0, 10, 16)}
    return jax.tree.map(jnp.asarray, batch)


def step_of(peak=0.01, **settings):
    optimizer, step_settings = SGD().make(), StepSettings(log_every=1, **settings)
    mesh = parallel.data_mesh(jax.devices()[:1])
    state = init_state(TASK, optimizer, 0, step_settings.ema_decay, 0.0, (32, 32, 3), mesh)
    step = jax.jit(partial(train_step, TASK, optimizer, Constant().make(peak, 100, 1), step_settings))
    return state, partial(step, batch=batch_of_16())


@pytest.mark.extensive
def test_dropout_differs_from_step_to_step_and_repeats_after_a_restart():
    state, step = step_of(peak=0.0)
    first, metrics = step(state)
    _, other = step(first)  # The same parameters and batch, with other units dropped.
    _, again = step(state)
    assert metrics["train_loss"] != other["train_loss"] and metrics["train_loss"] == again["train_loss"]


@pytest.mark.extensive
def test_a_moving_average_of_the_variables_is_kept():
    state, step = step_of(ema_decay=0.5)
    new, _ = step(state)
    decay = min(0.5, 1 / 10)
    kernel = lambda tree: np.asarray(tree["params"]["head"]["kernel"])  # noqa: E731
    expected = decay * kernel({"params": state.params}) + (1 - decay) * kernel({"params": new.params})
    np.testing.assert_allclose(kernel(new.ema), expected, rtol=1e-5)


@pytest.mark.extensive
def test_parts_of_a_batch_have_dropout_of_their_own():
    state, step = step_of(accumulate_steps=2)
    _, metrics = step(state)
    keys = jax.random.split(loss_key(0, jnp.int32(0)), 2)
    loss = jax.jit(lambda part, key: TASK.loss(state.variables, part, key)[0])
    parts = [jax.tree.map(lambda x, i=i: x[i::2], batch_of_16()) for i in (0, 1)]
    each = [loss(part, key) for part, key in zip(parts, keys, strict=True)]
    np.testing.assert_allclose(metrics["train_loss"], np.mean(each), rtol=1e-5)
    shared = loss(parts[1], keys[0])
    assert abs(shared - each[1]) > 1e-3  # The same units dropped in both would show.
