from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from resnet_jax import parallel
from resnet_jax.errors import UserError
from resnet_jax.kernels import PLAIN
from resnet_jax.models.layers import BatchNorm, Conv, Dropout, GlobalMean, he_normal

torch = pytest.importorskip("torch")

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


@pytest.mark.parametrize(
    "size, strides, groups, dilation",
    [(3, 1, 1, 1), (3, 2, 1, 1), (1, 1, 1, 1), (1, 2, 1, 1), (7, 2, 1, 1), (3, 2, 3, 1), (3, 1, 1, 2)],
)
@pytest.mark.parametrize("image", [(8, 8), (7, 7), (8, 7)], ids=str)
def test_conv_layer_places_its_windows_as_pytorch_does(size, strides, groups, dilation, image):
    x, layer = draw((2, *image, CHANNELS)), Conv(6, size, strides, groups, dilation, use_bias=True)
    variables = layer.init(jax.random.key(0), x)
    variables["params"]["bias"] = jnp.arange(6.0)
    there = torch.nn.Conv2d(CHANNELS, 6, size, strides, dilation * (size // 2), dilation, groups)
    kernel = np.asarray(variables["params"]["kernel"])
    there.load_state_dict({"weight": torch.tensor(kernel).permute(3, 2, 0, 1), "bias": torch.arange(6.0)})
    np.testing.assert_allclose(layer.apply(variables, x), from_torch(there(to_torch(x))), rtol=0, atol=1e-4)


def test_conv_layer_computes_in_its_dtype_and_keeps_its_kernel_in_float32():
    x = draw((2, 6, 6, CHANNELS))
    layer = Conv(4, 3, dtype=jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x)
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(layer.apply(v, x).astype(jnp.float32))))(variables)
    assert variables["params"]["kernel"].dtype == gradient["params"]["kernel"].dtype == jnp.float32
    assert layer.apply(variables, x).dtype == jnp.bfloat16
    # Eight significant bits: inputs, kernel and output are each rounded by at most 2**-9 of themselves.
    expected = Conv(4, 3).apply(variables, x)
    np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=0, atol=2**-6 * float(expected.max()))


@pytest.mark.parametrize("shape, fan_in", [((3, 3, 64, 256), 3 * 3 * 64), ((512, 300), 512)])
def test_he_normal_is_an_untruncated_normal_with_variance_two_over_fan_in(shape, fan_in):
    weights = np.asarray(he_normal(jax.random.key(0), shape), np.float64)
    std = np.sqrt(2 / fan_in)
    # The standard errors of mean and standard deviation are std / sqrt(n) and std / sqrt(2 n).
    assert abs(weights.mean()) < 4 * std / np.sqrt(weights.size)
    assert abs(weights.std() - std) < 4 * std / np.sqrt(2 * weights.size)
    # A truncated normal of this standard deviation ends at 2.3 of them.
    assert np.abs(weights).max() > 3.5 * std


def test_conv_layer_computes_by_its_kernels():
    calls = []

    def convolution(x, kernel, strides, padding, groups, dilation):
        calls.append((x.shape, kernel.shape, strides, padding, groups, dilation))
        return x

    kernels = PLAIN._replace(convolution=convolution)
    jax.eval_shape(Conv(8, 3, 2, 2, 3, kernels=kernels).init, jax.random.key(0), jnp.zeros((1, 4, 4, 6)))
    assert calls == [((1, 4, 4, 6), (3, 3, 3, 8), 2, ((3, 3), (3, 3)), 2, 3)]


def test_global_mean_is_over_positions_in_float32():
    x = jnp.asarray(draw(), jnp.bfloat16)
    mean = GlobalMean().apply({}, x)
    assert mean.dtype == jnp.float32
    np.testing.assert_allclose(mean, np.asarray(x, np.float64).mean(axis=(1, 2)), rtol=1e-5, atol=1e-5)


def test_dropout_gives_the_numbers_of_flax():
    x, rngs = jnp.asarray(draw()), {"dropout": jax.random.key(3)}
    expected = nn.Dropout(0.3, deterministic=False).apply({}, x, rngs=rngs)
    np.testing.assert_array_equal(Dropout(0.3, deterministic=False).apply({}, x, rngs=rngs), expected)
    assert 0.2 < np.mean(expected == 0) < 0.4
    np.testing.assert_array_equal(Dropout(0.3, deterministic=True).apply({}, x), x)
