import jax
import numpy as np
import pytest

from resnet_jax.kernels import PLAIN, fast_kernels
from resnet_jax.models.pooling import BlurPool, MaxOfNeighbours, MeanPool, WholeMeanPool, ZeroPaddedMaxPool

torch = pytest.importorskip("torch")
F = torch.nn.functional
SIZES = [(6, 4), (7, 5), (2, 3)]


def maps(size):
    return np.random.default_rng(0).normal(-2, 1, size=(2, *size, 3)).astype(np.float32)


def in_pytorch(function, x):
    return function(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()


def blurred(x):
    row = torch.tensor([1.0, 2.0, 1.0]) / 4
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), (row[:, None] * row).expand(3, 1, 3, 3), stride=2, groups=3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "module, reference",
    [
        (MeanPool(), lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)),
        (WholeMeanPool(), lambda x: F.avg_pool2d(x, 2)),
        (BlurPool(), blurred),
        (MaxOfNeighbours(), lambda x: F.max_pool2d(x, 3, 1, padding=1)),
        (ZeroPaddedMaxPool(PLAIN), lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)),
        (ZeroPaddedMaxPool(fast_kernels("cpu", 1)), lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)),
    ],
    ids=["mean", "whole-mean", "blur", "max", "zero-padded", "zero-padded-fast"],
)
def test_maps_of_even_and_odd_sizes_are_pooled_as_in_pytorch(module, reference, size):
    x = maps(size)
    np.testing.assert_allclose(jax.jit(module.apply)({}, x), in_pytorch(reference, x), rtol=1e-5, atol=1e-6)
