"""Our training step beside PyTorch's, on the same batches."""

import numpy as np
import pytest

from resnet_jax import build
from resnet_jax.config import load_config, override


@pytest.mark.slow
def test_the_first_losses_are_pytorch_s_and_rounding_alone_drives_them_apart():
    pytest.importorskip("torch")
    from benchmarks.dynamics import SIDES, summary, training

    changes = {
        "data.name": "digits", "model.stage_sizes": (1, 1, 1), "model.width": 8, "batch_size": 32,
        "model.bn_group_size": 16, "optimizer.weight_decay": 1e-2,
    }  # fmt: skip
    config = override(load_config("configs/cifar10.py:resnet20"), changes)
    batches = list(training(config, build.make_dataset(config), steps=12))
    found = {side: np.array([batch[side].loss for batch in batches]) for side in SIDES}
    np.testing.assert_allclose(found["ours"][:5], found["PyTorch, float64"][:5], rtol=2e-5)
    assert found["ours"][-1] < found["ours"][0] - 0.1  # Or there would be nothing to tell apart.
    for batch in batches[:5]:
        assert abs(batch["ours"].error - batch["PyTorch"].error) <= 100 / 32  # Rounding may turn one prediction.
    figures = summary(found)
    assert figures["ours and PyTorch, first 10"] < 50 * figures["PyTorch in float64 and float32, first 10"] + 1e-5
