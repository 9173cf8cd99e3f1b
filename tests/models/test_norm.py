from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from resnet_jax import parallel
from resnet_jax.errors import UserError
from resnet_jax.models.norm import BatchNorm

CHANNELS = 3


def draw(shape=(16, 4, 5, CHANNELS), seed=0):
    """Images whose channels have means and scales of their own."""
    noise = np.random.default_rng(seed).normal(size=shape)
    return (noise * [0.5, 1.0, 3.0] + [-1.0, 0.0, 2.0]).astype(np.float32)


def draw_variables(seed=1):
    rng = np.random.default_rng(seed)
    return {
        "params": {
            "scale": rng.uniform(0.5, 2, CHANNELS).astype(np.float32),
            "bias": rng.normal(size=CHANNELS).astype(np.float32),
        },
        "batch_stats": {
            "mean": rng.normal(size=CHANNELS).astype(np.float32),
            "var": rng.uniform(0.5, 2, CHANNELS).astype(np.float32),
        },
    }


def torch_norm(variables):
    layer = torch.nn.BatchNorm2d(CHANNELS)  # Momentum 0.1 and epsilon 1e-5: this project's, in PyTorch's convention.
    names = {"weight": ("params", "scale"), "bias": ("params", "bias")}
    names |= {"running_mean": ("batch_stats", "mean"), "running_var": ("batch_stats", "var")}
    layer.load_state_dict({key: torch.tensor(variables[a][b]) for key, (a, b) in names.items()}, strict=False)
    return layer


def to_torch(x):
    return torch.tensor(x).permute(0, 3, 1, 2)


def from_torch(x):
    return x.detach().permute(0, 2, 3, 1).numpy()


@partial(jax.jit, static_argnums=2)
def train(variables, x, group_size=None):
    """Output and new running statistics."""
    layer = BatchNorm(use_running_average=False, group_size=group_size)
    output, updated = layer.apply(variables, x, mutable=["batch_stats"])
    return output, updated["batch_stats"]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_output_and_gradients_equal_pytorch(training):
    x, g, variables = draw(), draw(seed=2), draw_variables()
    layer = BatchNorm(use_running_average=not training)

    @jax.jit
    def run(params, x):
        def output(params, x):
            return layer.apply(variables | {"params": params}, x, mutable=["batch_stats"])[0]

        y, pullback = jax.vjp(output, params, x)
        return y, *pullback(jnp.asarray(g))

    y, params_gradient, x_gradient = run(variables["params"], x)
    reference = torch_norm(variables).train(training)
    torch_x = to_torch(x).requires_grad_()
    torch_y = reference(torch_x)
    torch_y.backward(to_torch(g))
    np.testing.assert_allclose(y, from_torch(torch_y), rtol=0, atol=1e-5)
    np.testing.assert_allclose(x_gradient, from_torch(torch_x.grad), rtol=0, atol=2e-5)
    np.testing.assert_allclose(params_gradient["scale"], reference.weight.grad, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(params_gradient["bias"], reference.bias.grad, rtol=1e-5, atol=1e-3)


def test_running_statistics_follow_pytorch_except_for_the_biased_variance():
    x, variables = draw(), draw_variables()
    _, stats = train(variables, x)
    reference = torch_norm(variables).train()
    reference(to_torch(x))
    np.testing.assert_allclose(stats["mean"], reference.running_mean, rtol=1e-5, atol=1e-6)
    # PyTorch adds a tenth of the unbiased variance, n / (n - 1) times the biased one.
    n = x.size // CHANNELS
    kept = 0.9 * variables["batch_stats"]["var"]
    expected = kept + (reference.running_var.numpy() - kept) * (n - 1) / n
    np.testing.assert_allclose(stats["var"], expected, rtol=1e-5)


def test_evaluation_leaves_the_running_statistics_alone():
    variables = draw_variables()
    _, updated = BatchNorm(use_running_average=True).apply(variables, draw(), mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"])


def test_initial_variables_are_the_identity_and_initialising_counts_no_batch():
    variables = BatchNorm(use_running_average=False).init(jax.random.key(0), draw())
    ones, zeros = np.ones(CHANNELS), np.zeros(CHANNELS)
    expected = {"params": {"scale": ones, "bias": zeros}, "batch_stats": {"mean": zeros, "var": ones}}
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_group_size_equals_running_each_group_on_its_own():
    x, variables = draw((12, 4, 5, CHANNELS)), draw_variables()
    output, stats = train(variables, x, group_size=4)
    outputs, each = zip(*(train(variables, x[i : i + 4]) for i in (0, 4, 8)), strict=True)
    np.testing.assert_allclose(output, np.concatenate(outputs), rtol=0, atol=1e-5)
    jax.tree.map(lambda a, *e: np.testing.assert_allclose(a, np.mean(e, axis=0), rtol=1e-5, atol=1e-6), stats, *each)
    # The groups differ, or the test would hold for any group size.
    assert np.abs(output - train(variables, x)[0]).max() > 0.01


def test_gradients_do_not_cross_groups():
    x, variables = draw((8, 4, 5, CHANNELS)), draw_variables()

    def first_group(x):
        return jnp.sum(train(variables, x, group_size=4)[0][:4] ** 3)

    gradient = jax.jit(jax.grad(first_group))(x)
    assert np.abs(gradient[:4]).max() > 0.01
    np.testing.assert_array_equal(gradient[4:], 0)


def test_training_batch_that_the_group_size_does_not_divide_is_a_user_error():
    with pytest.raises(UserError, match="batch of 10 is not divisible by bn_group_size 4") as caught:
        train(draw_variables(), draw((10, 2, 2, CHANNELS)), group_size=4)
    assert "\n" not in str(caught.value)


def test_batch_smaller_than_the_group_is_one_group():
    x, variables = draw((6, 2, 2, CHANNELS)), draw_variables()
    grouped, whole = (train(variables, x, group_size=size)[0] for size in (64, None))
    np.testing.assert_array_equal(grouped, whole)


def test_group_size_does_not_matter_in_evaluation():
    x, variables = draw((10, 2, 2, CHANNELS)), draw_variables()
    grouped = BatchNorm(use_running_average=True, group_size=4).apply(variables, x)
    np.testing.assert_array_equal(grouped, BatchNorm(use_running_average=True).apply(variables, x))


@pytest.mark.parametrize("group_size", [None, 2], ids=["global", "groups-of-2"])
def test_sharded_batch_gives_the_output_statistics_and_gradients_of_one_device(mesh, group_size):
    x, variables = draw(), draw_variables()

    def run(variables, x):
        def loss(params, x):
            output, stats = train(variables | {"params": params}, x, group_size)
            return jnp.sum(output**3), (output, stats)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)

    sharding = parallel.sharded_batch(mesh)
    (params_gradient, x_gradient), (output, stats) = jax.jit(run)(
        parallel.to_global(variables, parallel.replicated(mesh)), parallel.to_global(x, sharding)
    )
    assert len(output.sharding.device_set) == mesh.size
    (expected_params_gradient, expected_x_gradient), (expected_output, expected_stats) = jax.jit(run)(variables, x)
    np.testing.assert_allclose(output, expected_output, rtol=0, atol=1e-5)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6), stats, expected_stats)
    for actual, expected in [(params_gradient, expected_params_gradient), (x_gradient, expected_x_gradient)]:
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-3), actual, expected)


def test_constant_channels_are_normalised_to_the_bias():
    # Rounding puts E[x**2] - E[x]**2 below -epsilon for some of these constants.
    constants = np.linspace(50, 150, 64, dtype=np.float32)
    x = np.broadcast_to(constants, (4, 3, 3, 64))
    layer = BatchNorm(use_running_average=False)
    variables = layer.init(jax.random.key(0), x)
    output, updated = layer.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(output, 0, atol=0.05)
    assert np.all(updated["batch_stats"]["var"] >= 0.9)


def test_half_precision_input_is_normalised_with_float32_statistics():
    # Eight bits cannot hold the sum of 320 such values: statistics in bfloat16 would be off by percents.
    x = jnp.asarray(draw() + 10, jnp.bfloat16)
    variables = draw_variables()
    layer = BatchNorm(use_running_average=False, dtype=jnp.bfloat16)
    output, updated = layer.apply(variables, x, mutable=["batch_stats"])
    expected, expected_stats = train(variables, x.astype(jnp.float32))
    assert output.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype(jnp.float32)}
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6), updated["batch_stats"], expected_stats)
    np.testing.assert_allclose(output, expected, rtol=2**-8, atol=2**-8)
