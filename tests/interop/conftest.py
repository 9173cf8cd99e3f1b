"""The state dict of a tiny network in PyTorch, and the variables that it gives."""

import pytest

from resnet_jax.interop.torch_weights import load_torch


@pytest.fixture
def tiny_weights():
    from tests.interop.torch_networks import TINY, TorchResNet, randomised  # Here, because it needs PyTorch.

    return randomised(TorchResNet(**TINY)).state_dict()


@pytest.fixture
def tiny_variables(tiny_weights):
    from tests.interop.torch_networks import TINY

    return load_torch("resnet20", tiny_weights, **TINY)
