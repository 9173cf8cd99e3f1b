import jax
import numpy as np
import pytest
from jax import tree_util

from resnet_jax.models.attention import EfficientChannelAttention, SqueezeExcitation

torch = pytest.importorskip("torch")
F = torch.nn.functional


def maps(channels):
    return np.random.default_rng(0).normal(1, 2, size=(2, 5, 3, channels)).astype(np.float32)


def parameters(module, x):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    return tree_util.tree_map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("ratio, channels, hidden", [(1 / 16, 256, 16), (1 / 16, 32, 8), (0.25, 64, 16)])
def test_squeeze_and_excitation_scales_channels_by_two_layers_of_their_means(ratio, channels, hidden):
    x, module = maps(channels), SqueezeExcitation(ratio)
    p = parameters(module, x)
    assert p["fc1"]["kernel"].shape == (channels, hidden) == p["fc2"]["kernel"].shape[::-1]
    squeezed = np.maximum(x.mean(axis=(1, 2)) @ p["fc1"]["kernel"] + p["fc1"]["bias"], 0)
    scale = 1 / (1 + np.exp(-(squeezed @ p["fc2"]["kernel"] + p["fc2"]["bias"])))
    np.testing.assert_allclose(module.apply({"params": p}, x), x * scale[:, None, None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels, size", [(64, 3), (256, 5), (512, 5), (2048, 7)])
def test_efficient_channel_attention_scales_channels_by_a_convolution_of_their_means(channels, size):
    x, module = maps(channels), EfficientChannelAttention()
    p = parameters(module, x)
    kernel = p["conv"]["kernel"]
    assert kernel.shape == (size, 1, 1)
    means = torch.tensor(x.mean(axis=(1, 2)))[:, None]
    scale = torch.sigmoid(F.conv1d(means, torch.tensor(kernel.transpose()), padding=size // 2)).numpy()
    np.testing.assert_allclose(module.apply({"params": p}, x), x * scale[:, 0, None, None], rtol=1e-4, atol=1e-5)
