"""The state of a run beside its parameters: what a schedule keeps between evaluations, and through a checkpoint."""

import jax
import numpy as np
import pytest

from resnet_jax import parallel
from resnet_jax.train import checkpoint
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.schedules import Plateau
from resnet_jax.train.state import init_state, step_plateau

PLATEAU = Plateau(patience=3)


@pytest.fixture(scope="module")
def tiny_state(tiny_task):
    return lambda mesh, seed=0, ema_decay=0.0: init_state(
        tiny_task(stage_sizes=(1,)), SGD().make(), seed, ema_decay, 0.0, (8, 8, 3), mesh
    )


def test_the_initial_state_is_a_function_of_the_seed_on_any_number_of_devices(mesh, one_device, tiny_state):
    state, again = (jax.device_get(tiny_state(mesh)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, state, again)
    jax.tree.map(np.testing.assert_array_equal, state, jax.device_get(tiny_state(one_device)))
    other = jax.device_get(tiny_state(mesh, seed=1))
    assert np.abs(state.params["head"]["kernel"] - other.params["head"]["kernel"]).max() > 0.01


def test_the_moving_average_starts_at_the_initial_variables(mesh, tiny_state):
    state = tiny_state(mesh, ema_decay=0.99)
    jax.tree.map(np.testing.assert_array_equal, state.ema, {"params": state.params, "batch_stats": state.batch_stats})
    assert {leaf.sharding for leaf in jax.tree.leaves(state)} == {parallel.replicated(mesh)}


# Patience 3: the plateaus are complete at the fourth and at the ninth error.
ERRORS = [50.0, 60.0, 50.0, 50.0, 45.0, 45.0, 40.0, 41.0, 42.0, 43.0]
SCALES = [1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.01]


@pytest.mark.parametrize("saved_after", [3, 8])
@pytest.mark.extensive
def test_evaluations_scale_the_rate_at_a_plateau_also_through_a_checkpoint(tmp_path, mesh, tiny_state, saved_after):
    state, scales = tiny_state(mesh), []
    template = jax.eval_shape(lambda: tiny_state(mesh))
    for number, error in enumerate(ERRORS):
        if number == saved_after:
            manager = checkpoint.open_checkpoints(tmp_path, 1, "top1_error")
            checkpoint.save(manager, 1, state, None)
            manager.wait_until_finished()
            state = checkpoint.restore_latest(manager, template, mesh, set_aside=False)
            manager.close()
        before, state = state, step_plateau(PLATEAU, state, error, mesh)
        scales.append(float(state.plateau.scale))
        same = before.replace(plateau=state.plateau)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(same), jax.device_get(state))
    np.testing.assert_allclose(scales, SCALES, rtol=1e-6)
    assert {leaf.sharding for leaf in jax.tree.leaves(state)} == {parallel.replicated(mesh)}


def test_an_error_that_is_not_a_number_is_no_new_least_error(mesh, tiny_state):
    state, scales = tiny_state(mesh), []
    for error in [50.0, float("nan"), float("nan"), float("nan"), 49.0]:
        state = step_plateau(PLATEAU, state, error, mesh)
        scales.append(float(state.plateau.scale))
    np.testing.assert_allclose(scales, [1, 1, 1, 0.1, 0.1], rtol=1e-6)
    assert float(state.plateau.best_value) == 49
