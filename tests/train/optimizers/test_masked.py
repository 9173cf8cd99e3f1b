"""Optimizers of a part of the parameters: the others keep every bit, and the part moves as it would alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.train.optimizers import SGD
from resnet_jax.train.optimizers.masked import apply_updates, only, without_frozen


def moved(optimizer, params, steps=3):
    state, gradient = optimizer.init(params), jax.tree.map(lambda leaf: jnp.cos(7 * leaf), params)
    for _ in range(steps):
        updates, state = optimizer.update(gradient, state, params, learning_rate=jnp.float32(0.3))
        params = jax.jit(apply_updates)(params, updates)
    return params, state


def random_params():
    rng = np.random.default_rng(0)
    return {name: {"kernel": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)} for name in ("stem", "head")}


@pytest.mark.extensive
def test_frozen_parameters_keep_every_bit_under_weight_decay_and_momentum_and_the_others_move_as_alone():
    optimizer, params = SGD(momentum=0.9, weight_decay=0.1).make(), random_params()
    params["stem"]["kernel"] = params["stem"]["kernel"].at[0, 0].set(-0.0).at[0, 1].set(1e-40)
    result, state = moved(only(optimizer, {"stem": {"kernel": False}, "head": {"kernel": True}}), params)
    assert np.asarray(result["stem"]["kernel"]).tobytes() == np.asarray(params["stem"]["kernel"]).tobytes()
    alone, _ = moved(optimizer, {"head": params["head"]})
    np.testing.assert_array_equal(result["head"]["kernel"], alone["head"]["kernel"])
    assert not np.array_equal(alone["head"]["kernel"], params["head"]["kernel"])
    # Nothing is gathered for the day when they are trained; and the state has the same form.
    without = moved(optimizer, params)[1]
    assert jax.tree.structure(state) == jax.tree.structure(without)
    momenta = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (3, 2)]
    assert [bool(np.any(leaf)) for leaf in momenta] == [True, False]


def test_the_gradients_of_what_is_left_alone_are_zero_whatever_they_were():
    params = random_params()
    gradients = {"stem": {"kernel": jnp.full((3, 2), jnp.nan)}, "head": {"kernel": jnp.full((3, 2), 2.0)}}
    optimizer = only(SGD().make(), {"stem": {"kernel": False}, "head": {"kernel": True}})
    found = without_frozen(optimizer, gradients, optimizer.init(params), params)
    np.testing.assert_array_equal(found["stem"]["kernel"], np.zeros((3, 2)))
    np.testing.assert_array_equal(found["head"]["kernel"], gradients["head"]["kernel"])


def test_without_a_mask_the_optimizer_is_itself():
    optimizer = SGD().make()
    assert only(optimizer, None) is optimizer
