import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from resnet_jax import recipes
from resnet_jax.errors import UserError
from resnet_jax.train.schedules import make_schedule, plateau_reducer, sgd


def config_with(**schedule):
    config = recipes.base()
    for key, value in schedule.items():
        config.schedule[key] = value
    return config


def rates(config, steps):
    schedule = make_schedule(config)
    return [float(schedule(jnp.int32(step))) for step in steps]


def test_the_paper_schedule_divides_by_ten_at_32k_and_48k():
    # Section 4.2. Step 32000 is the first after 32k updates.
    steps = [0, 31_999, 32_000, 47_999, 48_000, 63_999]
    expected = [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    np.testing.assert_allclose(rates(recipes.cifar10_paper("resnet20"), steps), expected, rtol=1e-6)


def test_step_uses_the_factor_and_boundaries_of_the_config():
    config = config_with(boundaries=(3, 5, 6), factor=0.5)
    config.optimizer.learning_rate = 0.8
    np.testing.assert_allclose(rates(config, range(8)), [0.8, 0.8, 0.8, 0.4, 0.4, 0.2, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize("warmup", [0, 10])
def test_cosine_falls_from_the_learning_rate_to_zero_at_the_last_step(warmup):
    config = config_with(name="cosine", warmup_steps=warmup)
    config.steps = 50
    steps = np.arange(warmup, 51)
    expected = 0.1 * (1 + np.cos(np.pi * (steps - warmup) / (50 - warmup))) / 2
    np.testing.assert_allclose(rates(config, steps), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["constant", "plateau"])
def test_constant_stays_and_so_does_plateau_before_it_is_scaled(name):
    np.testing.assert_allclose(rates(config_with(name=name), [0, 1, 63_999]), 0.1, rtol=1e-6)


@pytest.mark.parametrize("name", ["step", "plateau", "cosine", "constant"])
def test_warm_up_climbs_linearly_and_the_first_step_moves(name):
    config = config_with(name=name, warmup_steps=4)
    np.testing.assert_allclose(rates(config, range(5)), [0.025, 0.05, 0.075, 0.1, 0.1], rtol=1e-6)


def test_warm_up_does_not_shift_the_boundaries():
    config = config_with(boundaries=(6,), warmup_steps=4)
    np.testing.assert_allclose(rates(config, [5, 6]), [0.1, 0.01], rtol=1e-6)


@pytest.mark.parametrize(("key", "value"), [("name", "linear"), ("warmup_steps", -1), ("warmup_steps", 64_000)])
def test_a_wrong_schedule_is_refused_by_its_key(key, value):
    with pytest.raises(UserError, match=rf"config\.schedule\.{key} is {value!r}"):
        make_schedule(config_with(**{key: value}))


def plateau_scales(errors, patience, factor):
    """The scale after each evaluation, by a plain loop."""
    least, waited, scale = math.inf, 0, 1.0
    for error in errors:
        if error < least * (1 - 1e-4):  # Not so for NaN.
            least, waited = error, 0
        else:
            waited += 1
        if waited == patience:
            scale, waited = scale * factor, 0
        yield scale


def reduced(errors, patience, factor):
    """The same by the program."""
    reducer = plateau_reducer(config_with(name="plateau", patience=patience, factor=factor))
    update = jax.jit(lambda state, error: reducer.update({}, state, value=error)[1])
    state = reducer.init(jnp.float32(0))
    for error in errors:
        state = update(state, jnp.float32(error))
        yield float(state.scale)


@pytest.mark.parametrize(("patience", "factor"), [(1, 0.8), (2, 0.5), (5, 0.1)])
def test_the_plateau_reducer_is_the_plain_loop_on_random_errors(patience, factor):
    # Errors of few values, so that equal ones are frequent, on their way down; some evaluations give no number.
    rng = np.random.default_rng(patience)
    errors = np.round(90 * 0.97 ** np.arange(150) + rng.integers(-3, 4, 150))
    errors[rng.random(150) < 0.05] = math.nan
    expected = list(plateau_scales(errors, patience, factor))
    np.testing.assert_allclose(list(reduced(errors, patience, factor)), expected, rtol=1e-5)
    assert len(set(expected)) > 3


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


def test_a_wrong_decay_is_refused():
    config = recipes.base()
    config.optimizer.decay = "none"
    with pytest.raises(UserError, match=r"config\.optimizer\.decay is 'none'"):
        sgd(jnp.float32(0.1), config)


def random_vectors(count):
    return np.random.default_rng(0).normal(size=(count, 5)).astype(np.float32)


def run_sgd(config, weights, gradients, learning_rates):
    """The weights after each step."""

    @jax.jit
    def update(weights, momentum, gradient, rate):
        updates, momentum = sgd(rate, config).update(gradient, momentum, weights)
        return optax.apply_updates(weights, updates), momentum

    weights = jnp.asarray(weights)
    momentum = sgd(jnp.float32(0), config).init(weights)
    history = []
    for gradient, rate in zip(gradients, learning_rates, strict=True):
        weights, momentum = update(weights, momentum, gradient, jnp.float32(rate))
        history.append(np.asarray(weights))
    return np.stack(history)


def test_sgd_is_that_of_pytorch_while_the_rate_is_constant():
    start, *gradients = random_vectors(11)
    weights = torch.nn.Parameter(torch.tensor(start))
    reference = torch.optim.SGD([weights], lr=0.1, momentum=0.9, weight_decay=1e-4)
    expected = []
    for gradient in gradients:
        weights.grad = torch.tensor(gradient)
        reference.step()
        expected.append(weights.detach().numpy().copy())
    # The recipe's own momentum and weight decay are the 0.9 and 1e-4 of section 4.2.
    found = run_sgd(recipes.cifar10_paper("resnet20"), start, gradients, [0.1] * 10)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_rate_is_inside_the_velocity_as_the_authors_ran_it():
    start, *gradients = random_vectors(7)
    config = recipes.base()
    config.optimizer.weight_decay = 0.01
    learning_rates = [0.1, 0.1, 0.1, 0.01, 0.01, 0.05]

    def authors():
        w, v = start.astype(np.float64), np.zeros(5)
        for g, lr in zip(gradients, learning_rates, strict=True):
            v = 0.9 * v + lr * (g + 0.01 * w)
            w = w - v
            yield w

    def outside():
        w, v = start.astype(np.float64), np.zeros(5)
        for g, lr in zip(gradients, learning_rates, strict=True):
            v = 0.9 * v + g + 0.01 * w
            w = w - lr * v
            yield w

    found = run_sgd(config, start, gradients, learning_rates)
    np.testing.assert_allclose(found, list(authors()), rtol=1e-5, atol=1e-6)
    # The other order is far off, so that the comparison above can tell them apart.
    assert np.abs(found - list(outside())).max() > 1e-2


@pytest.mark.parametrize("decay", ["all", "kernels"])
def test_decay_of_kernels_leaves_batch_norm_and_biases_alone(decay):
    config = recipes.base()
    config.optimizer.decay = decay
    config.optimizer.weight_decay = 0.01
    params = {
        "conv": {"kernel": jnp.full(3, 2.0)},
        "bn": {"scale": jnp.full(3, 2.0), "bias": jnp.full(3, 2.0)},
        "head": {"kernel": jnp.full(3, 2.0), "bias": jnp.full(3, 2.0)},
    }
    optimizer = sgd(jnp.float32(0.5), config)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    decayed, kept = np.full(3, -0.5 * 0.01 * 2), np.zeros(3)
    for layer, leaves in updates.items():
        for name, update in leaves.items():
            expected = decayed if decay == "all" or name == "kernel" else kept
            np.testing.assert_allclose(update, expected, rtol=1e-6, err_msg=f"{layer}/{name}")
