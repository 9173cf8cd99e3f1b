import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.models.norms import EvoNormS0, FilterResponseNorm, GroupNorm

torch = pytest.importorskip("torch")


def maps(channels, seed=0):
    return np.random.default_rng(seed).normal(1, 2, size=(2, 5, 3, channels)).astype(np.float32)


def parameters(module, x):
    """Different for each channel."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    return {name: rng.normal(0.5, 1, leaf.shape).astype(np.float32) for name, leaf in shapes.items()}


@pytest.mark.parametrize("channels, groups", [(64, 32), (24, 8)])
@pytest.mark.extensive
def test_group_norm_is_that_of_pytorch_with_as_many_groups_as_divide_the_channels(channels, groups):
    x, module = maps(channels), GroupNorm()
    params = parameters(module, x)
    scale, bias = (torch.tensor(params[name]) for name in ("scale", "bias"))
    expected = torch.nn.functional.group_norm(torch.tensor(x).permute(0, 3, 1, 2), groups, scale, bias, eps=1e-5)
    actual = module.apply({"params": params}, x)
    np.testing.assert_allclose(actual, expected.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-5)


def test_evonorm_divides_what_is_gated_by_the_deviation_of_its_group():
    x, module = maps(64), EvoNormS0()
    p = parameters(module, x)
    deviation = np.sqrt(np.float64(x).reshape(2, 15, 32, 2).var(axis=(1, 3)) + 1e-5)
    expected = x / (1 + np.exp(-p["v"] * x)) / np.repeat(deviation, 2, axis=1)[:, None, None] * p["scale"] + p["bias"]
    np.testing.assert_allclose(module.apply({"params": p}, x), expected, rtol=1e-4, atol=1e-5)


def test_filter_response_norm_divides_by_the_root_mean_square_and_cuts_off_below():
    x, module = maps(6), FilterResponseNorm()
    p = parameters(module, x)
    expected = x / np.sqrt((np.float64(x) ** 2).mean(axis=(1, 2), keepdims=True) + 1e-5) * p["scale"] + p["bias"]
    expected = np.maximum(expected, p["tau"])
    np.testing.assert_allclose(module.apply({"params": p}, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", [GroupNorm, EvoNormS0, FilterResponseNorm])
@pytest.mark.extensive
def test_a_far_mean_does_not_cost_precision_and_bfloat16_is_for_the_result(norm):
    x = maps(32)
    variables = norm().init(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert norm(dtype=jnp.bfloat16).apply(variables, x).dtype == jnp.bfloat16
    if norm is GroupNorm:
        np.testing.assert_allclose(norm().apply(variables, x + 1000), norm().apply(variables, x), atol=2e-3)
