"""The reducer against a plain loop, on random errors and on cases written out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.train.schedules import Plateau


def plateau_scales(errors, patience, factor, cooldown=0, floor=0.0):
    """The scale after each evaluation, by a plain loop."""
    least, waited, resting, scale = math.inf, 0, 0, 1.0
    for error in errors:
        if error < least * (1 - 1e-4):  # Not so for NaN.
            least, waited = error, 0
        else:
            waited += 1
        if resting:
            resting, waited = resting - 1, 0
        elif waited == patience:
            scale, waited, resting = max(scale * factor, floor), 0, cooldown
        yield scale


def reduced(errors, patience, factor, cooldown=0, floor=0.0):
    """The same by the program."""
    reducer = Plateau(patience=patience, factor=factor, cooldown=cooldown, floor=floor).reducer()
    update = jax.jit(lambda state, error: reducer.update({}, state, value=error)[1])
    state = reducer.init(jnp.float32(0))
    for error in errors:
        state = update(state, jnp.float32(error))
        yield float(state.scale)


@pytest.mark.parametrize(("patience", "factor"), [(1, 0.8), (2, 0.5), (5, 0.1)])
def test_the_reducer_is_the_plain_loop_on_random_errors(patience, factor):
    # Errors of few values, so that equal ones are frequent, on their way down; some evaluations give no number.
    rng = np.random.default_rng(patience)
    errors = np.round(90 * 0.97 ** np.arange(150) + rng.integers(-3, 4, 150))
    errors[rng.random(150) < 0.05] = math.nan
    expected = list(plateau_scales(errors, patience, factor))
    np.testing.assert_allclose(list(reduced(errors, patience, factor)), expected, rtol=1e-5)
    assert len(set(expected)) > 3
    limited = list(plateau_scales(errors, patience, factor, cooldown=3, floor=0.3))
    np.testing.assert_allclose(list(reduced(errors, patience, factor, cooldown=3, floor=0.3)), limited, rtol=1e-5)
    assert limited != expected


def test_evaluations_after_a_reduction_can_be_left_out_of_the_count():
    assert list(reduced([50, 60, 60, 60, 60, 60], 1, 0.5, cooldown=2)) == [1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_the_rate_falls_no_further_than_the_floor():
    np.testing.assert_allclose(list(reduced([50, 60, 60, 60], 1, 0.1, floor=0.05)), [1, 0.1, 0.05, 0.05], rtol=1e-6)


@pytest.mark.parametrize(
    ("errors", "scales"),
    [
        ([50, 40, 40, 40, 40], [1, 1, 1, 0.1, 0.1]),  # Equal is not lower; after a cut the count begins anew.
        ([50, 60, 40, 60, 39, 60, 60], [1, 1, 1, 1, 1, 1, 0.1]),
        ([50, 49.999, 49.998, 49.9], [1, 1, 0.1, 0.1]),  # Lower by less than 1e-4 of it is not lower.
        ([50, 49.99, 49.98, 49.97], [1, 1, 1, 1]),
        ([math.nan, math.nan, 50, math.nan, 60], [1, 0.1, 0.1, 0.1, 0.01]),  # NaN is no new least error.
        ([0, 0, 0], [1, 1, 0.1]),
    ],
)
def test_two_evaluations_without_a_new_least_error_are_a_plateau(errors, scales):
    np.testing.assert_allclose(list(plateau_scales(errors, 2, 0.1)), scales, rtol=1e-6)
    np.testing.assert_allclose(list(reduced(errors, 2, 0.1)), scales, rtol=1e-6)
