"""SGD against PyTorch and against the authors' update written out, with the rate set from outside."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic
import pytest

from resnet_jax.train.optimizers import SGD

torch = pytest.importorskip("torch")


def random_vectors(count):
    return np.random.default_rng(0).normal(size=(count, 5)).astype(np.float32)


def run_sgd(sgd, weights, gradients, learning_rates):
    """The weights after each step."""
    optimizer = sgd.make()

    @jax.jit
    def update(weights, state, gradient, rate):
        updates, state = optimizer.update(gradient, state, weights, learning_rate=rate)
        return optax.apply_updates(weights, updates), state

    weights = jnp.asarray(weights)
    state = optimizer.init(weights)
    history = []
    for gradient, rate in zip(gradients, learning_rates, strict=True):
        weights, state = update(weights, state, gradient, jnp.float32(rate))
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
    # The defaults for momentum and weight decay are the 0.9 and 1e-4 of section 4.2.
    found = run_sgd(SGD(), start, gradients, [0.1] * 10)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_rate_is_inside_the_velocity_as_the_authors_ran_it():
    start, *gradients = random_vectors(7)
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

    found = run_sgd(SGD(weight_decay=0.01), start, gradients, learning_rates)
    np.testing.assert_allclose(found, list(authors()), rtol=1e-5, atol=1e-6)
    # The other order is far off, so that the comparison above can tell them apart.
    assert np.abs(found - list(outside())).max() > 1e-2


@pytest.mark.parametrize("decay", ["all", "kernels"])
def test_decay_of_kernels_leaves_batch_norm_and_biases_alone(decay):
    params = {
        "conv": {"kernel": jnp.full(3, 2.0)},
        "bn": {"scale": jnp.full(3, 2.0), "bias": jnp.full(3, 2.0)},
        "head": {"kernel": jnp.full(3, 2.0), "bias": jnp.full(3, 2.0)},
    }
    optimizer = SGD(decay=decay, weight_decay=0.01).make()
    zeros, rate = jax.tree.map(jnp.zeros_like, params), jnp.float32(0.5)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params, learning_rate=rate)
    decayed, kept = np.full(3, -0.5 * 0.01 * 2), np.zeros(3)
    for layer, leaves in updates.items():
        for name, update in leaves.items():
            expected = decayed if decay == "all" or name == "kernel" else kept
            np.testing.assert_allclose(update, expected, rtol=1e-6, err_msg=f"{layer}/{name}")


def test_the_state_has_one_form_for_all_settings():
    params = {"conv": {"kernel": jnp.ones(3)}, "bn": {"scale": jnp.ones(3)}}
    forms = [
        jax.tree.structure(sgd.make().init(params))
        for sgd in (SGD(), SGD(decay="kernels", momentum=0.0, weight_decay=0))
    ]
    assert forms[0] == forms[1]


def test_the_rate_scales_linearly_with_the_batch_where_the_recipe_says_for_which_it_is():
    assert SGD(learning_rate=0.1).rate(1024) == 0.1
    assert SGD(learning_rate=0.1, learning_rate_batch=256).rate(1024) == pytest.approx(0.4)
    assert SGD(learning_rate=0.1, learning_rate_batch=256).rate(64) == pytest.approx(0.025)


@pytest.mark.parametrize(
    "values",
    [{"decay": "none"}, {"learning_rate": -0.1}, {"momentum": -1.0}, {"weight_decay": -1e-4}, {"nesterov": 1}],
    ids=str,
)
def test_a_wrong_value_is_refused_by_its_key(values):
    (key,) = values
    with pytest.raises(pydantic.ValidationError) as caught:
        SGD(**values)
    assert caught.value.errors()[0]["loc"] == (key,)
