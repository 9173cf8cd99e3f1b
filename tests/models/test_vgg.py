import jax
import numpy as np
import pytest

from resnet_jax.analysis.complexity import count_multiply_adds, count_parameters
from resnet_jax.models import create_model
from resnet_jax.models.vgg import POOLED, adaptive_mean

torch = pytest.importorskip("torch")
F = torch.nn.functional

TINY = {"width": 2, "hidden": 6, "num_classes": 5}


def images(batch=2, size=32):
    return np.random.default_rng(0).normal(size=(batch, size, size, 3)).astype(np.float32)


# torchvision's vgg16 and vgg19 have as many parameters; the paper has 15.3 and 19.6 billion FLOPs.
@pytest.mark.parametrize(
    "name, parameters, multiply_adds",
    [("vgg16", 138_357_544, 15_470_264_320), ("vgg19", 143_667_240, 19_632_062_464)],
)
def test_vgg_has_its_parameters_and_multiply_adds(name, parameters, multiply_adds):
    model = create_model(name)
    assert count_parameters(model, 224) == parameters
    assert count_multiply_adds(model, model.image_size) == multiply_adds


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 7), (8, 10), (14, 20)], ids=str)
@pytest.mark.extensive
def test_maps_are_averaged_as_by_pytorch(size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    expected = F.adaptive_avg_pool2d(torch.from_numpy(x).permute(0, 3, 1, 2), POOLED).permute(0, 2, 3, 1)
    np.testing.assert_allclose(adaptive_mean(x, POOLED), expected, atol=1e-6)


@pytest.mark.extensive
def test_dropout_is_random_in_training_and_absent_in_evaluation():
    model = create_model("vgg16", **TINY)
    variables = jax.jit(model.init)(jax.random.key(0), images())
    assert set(variables) == {"params"}

    def train(seed):
        return model.apply(variables, images(), train=True, rngs={"dropout": jax.random.key(seed)})

    np.testing.assert_array_equal(train(0), train(0))
    assert not np.array_equal(train(0), train(1))
    np.testing.assert_array_equal(model.apply(variables, images()), model.apply(variables, images()))
