import jax
import numpy as np
import pytest

from resnet_jax.kernels import fast_kernels
from resnet_jax.models.standardised import StandardisedConv

torch = pytest.importorskip("torch")


def test_weights_are_standardised_over_each_output_s_inputs_in_groups_too():
    x = np.random.default_rng(0).normal(size=(2, 6, 5, 8)).astype(np.float32)
    module = StandardisedConv(6, 3, strides=2, groups=2, kernels=fast_kernels("cpu", 1))
    kernel = np.random.default_rng(1).normal(3, 0.1, size=(3, 3, 4, 6)).astype(np.float32)
    weight = torch.tensor(np.float64(kernel).transpose(3, 2, 0, 1))
    mean, variance = weight.mean((1, 2, 3), keepdim=True), weight.var((1, 2, 3), correction=0, keepdim=True)
    standardised = ((weight - mean) / (variance + 1e-8).sqrt()).float()
    expected = torch.nn.functional.conv2d(torch.tensor(x).permute(0, 3, 1, 2), standardised, None, 2, 1, 1, 2)
    actual = jax.jit(module.apply)({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(actual, expected.permute(0, 2, 3, 1), rtol=1e-3, atol=1e-3)
