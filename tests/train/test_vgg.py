"""A network with dropout and without batch normalisation in the trainer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import parallel, recipes
from resnet_jax.config import make_model, validate
from resnet_jax.errors import UserError
from resnet_jax.train.schedules import make_schedule
from resnet_jax.train.state import init_state
from resnet_jax.train.step import train_step


def config_of(**settings):
    config = recipes.digits_quickstart()
    fields = {"model.name": "vgg16", "model.stage_sizes": (1, 1), "model.width": 2, "steps": 6, "batch_size": 16}
    fields |= {"log_every": 2, "eval_every": 6, "checkpoint_every": 2, "optimizer.learning_rate": 0.01}
    config.update_from_flattened_dict(fields | settings)
    return config


def step_of(config, seed_of_batch=0):
    mesh, model = parallel.data_mesh(jax.devices()[:1]), make_model(config, 10).clone(hidden=8)
    rng = np.random.default_rng(seed_of_batch)
    batch = {"image": rng.normal(size=(16, 32, 32, 3)).astype(np.float32), "label": rng.integers(0, 10, 16)}
    batch = jax.tree.map(jnp.asarray, batch)
    state = init_state(config, model, (32, 32, 3), mesh)
    step = jax.jit(lambda state: train_step(config, model, make_schedule(config), state, batch))
    return state, step


def test_dropout_differs_from_step_to_step_and_repeats_after_a_restart():
    state, step = step_of(config_of(**{"optimizer.learning_rate": 0.0, "log_every": 1}))
    first, metrics = step(state)
    _, other = step(first)  # The same parameters and batch, with other units dropped.
    _, again = step(state)
    assert metrics["train_loss"] != other["train_loss"] and metrics["train_loss"] == again["train_loss"]


def test_a_moving_average_of_the_variables_is_kept():
    state, step = step_of(config_of(ema_decay=0.5))
    new, _ = step(state)
    decay = min(0.5, 1 / 10)
    kernel = lambda tree: np.asarray(tree["params"]["head"]["kernel"])  # noqa: E731
    expected = decay * kernel({"params": state.params}) + (1 - decay) * kernel({"params": new.params})
    np.testing.assert_allclose(kernel(new.ema), expected, rtol=1e-5)


def test_parts_of_a_batch_have_dropout_of_their_own():
    state, step = step_of(config_of(accumulate_steps=2))
    new, metrics = step(state)
    assert np.isfinite(metrics["train_loss"])
    assert not np.array_equal(new.params["fc6"]["kernel"], state.params["fc6"]["kernel"])


def test_batch_statistics_cannot_be_recomputed():
    with pytest.raises(UserError, match="bn_recompute_batches is set but not read"):
        validate(config_of(bn_recompute_batches=2), num_devices=1)
