"""With the same weights the outputs are those of PyTorch and of torchvision."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.torch import load_file

from resnet_jax.analysis.complexity import count_parameters
from resnet_jax.interop.torch_weights import load_torch, save_torch
from resnet_jax.models import create_model
from tests.interop.drawn_weights import drawn
from tests.interop.torch_networks import (
    TINY,
    TorchResNet,
    TorchVGG,
    assert_logits_equal,
    assert_same_variables,
    images,
    randomised,
    torch_logits,
)

torch = pytest.importorskip("torch")

TESTS = Path(__file__).resolve().parent.parent
PUBLIC_RESNET20 = TESTS.parent.parent / "shared" / "weights" / "cifar10_resnet20_pytorch.th"


@pytest.fixture(scope="module")
def resnet20():
    return jax.jit(create_model("resnet20").apply)


def test_logits_equal_those_of_pytorch_with_random_weights_and_statistics(resnet20):
    network = randomised(TorchResNet())
    variables = load_torch("resnet20", network.state_dict())
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert_logits_equal(resnet20(variables, images(32)), torch_logits(network, images(32)))


def test_logits_of_the_public_checkpoint_equal_those_of_pytorch(resnet20):
    if not PUBLIC_RESNET20.is_file():
        pytest.skip(f"needs the public ResNet-20 checkpoint as {PUBLIC_RESNET20}")
    network = TorchResNet(head="linear")
    weights = torch.load(PUBLIC_RESNET20, map_location="cpu", weights_only=True)["state_dict"]
    network.load_state_dict({key.removeprefix("module."): value for key, value in weights.items()})
    variables = load_torch("resnet20", PUBLIC_RESNET20)
    assert_logits_equal(resnet20(variables, images(32)), torch_logits(network.eval(), images(32)))


def test_scanned_layout_gives_the_logits_of_pytorch():
    network = randomised(TorchResNet(**TINY))
    variables = load_torch("resnet20", network.state_dict(), **TINY, scan_blocks=True)
    assert "stage1_blocks" in variables["params"]
    model = create_model("resnet20", **TINY, scan_blocks=True)
    assert_logits_equal(jax.jit(model.apply)(variables, images(8)), torch_logits(network, images(8)))


def golden_state_dict(network):
    """For the keys and shapes of a network, arrays drawn from generators that the keys seed.

    The files in tests/golden hold what torchvision 0.28 computes with these weights.
    """
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    return {key: torch.from_numpy(array) for key, array in drawn(shapes).items()}


@pytest.mark.parametrize(
    "name, fields, stage_sizes, bottleneck",
    [
        ("resnet18", {}, (2, 2, 2, 2), False),
        pytest.param("resnet50", {"stride_placement": "v1.5"}, (3, 4, 6, 3), True, marks=pytest.mark.extensive),
    ],
    ids=["resnet18", "resnet50"],
)
def test_imagenet_networks_give_the_outputs_of_torchvision(tmp_path, name, fields, stage_sizes, bottleneck):
    expected = np.load(TESTS / "golden" / f"torchvision_{name}.npz")
    with torch.device("meta"):  # Its own random weights would take seconds, for nothing.
        network = TorchResNet(stage_sizes, 64, bottleneck, "imagenet", "B", num_classes=1000).eval()
    weights = golden_state_dict(network)
    variables = load_torch(name, weights, **fields)
    model = create_model(name, **fields)
    assert count_parameters(model) == expected["parameter_count"]

    @jax.jit
    def run(variables, x):
        features = model.apply(variables, x, features=True)
        return model.apply(variables, x), {stage: output.mean(axis=(1, 2)) for stage, output in features.items()}

    x = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32).transpose(0, 2, 3, 1)
    logits, means = run(variables, x)
    assert_logits_equal(logits, expected["logits"])
    assert set(means) == {"C1", "C2", "C3", "C4", "C5"}
    for i in range(1, 5):
        # Some channels are next to nothing; the absolute bound is float32's rounding of the others.
        np.testing.assert_allclose(means[f"C{i + 1}"], expected[f"layer{i}_mean"], rtol=1e-4, atol=1e-6)

    path = tmp_path / f"{name}.safetensors"
    save_torch(variables, path, model=model)
    network.load_state_dict(load_file(path), strict=True, assign=True)
    # The reference of the other tests is torchvision's network, then.
    assert_logits_equal(torch_logits(network, x), expected["logits"])
    assert_same_variables(load_torch(name, path, **fields), variables)
    path.unlink()  # A hundred megabytes, and pytest keeps the folders of three runs.


@pytest.mark.parametrize("size", [64, 98])
def test_anti_aliased_networks_give_the_logits_of_pytorch_where_the_stem_s_map_is_odd(size):
    """98 pixels are 49 after the stem's convolution, and 24 after its pool, as in timm."""
    fields = {"stage_sizes": (2, 1), "width": 8}
    network = randomised(TorchResNet(**fields, bottleneck=True, stem="imagenet", shortcut="B"))
    network.pool = torch.nn.AvgPool2d(2)
    block = network.layer2[0]
    block.conv2.stride = (1, 1)
    block.bn2.register_forward_hook(lambda module, _, y: torch.nn.functional.avg_pool2d(torch.relu(y), 2))
    variables = load_torch("resnetaa50", network.state_dict(), **fields)
    logits = jax.jit(create_model("resnetaa50", 10, **fields).apply)(variables, images(size))
    assert_logits_equal(logits, torch_logits(network, images(size)))


@pytest.mark.parametrize("size", [224, 64])
@pytest.mark.parametrize("name, stage_sizes", [("vgg16", (2, 2, 3, 3, 3)), ("vgg19", (2, 2, 4, 4, 4))])
@pytest.mark.extensive
def test_vgg_gives_the_logits_of_pytorch_and_its_weights_come_back(name, stage_sizes, size):
    network = randomised(TorchVGG(stage_sizes, width=2, hidden=8, num_classes=10))
    fields = {"width": 2, "hidden": 8}
    variables = load_torch(name, network.state_dict(), **fields)
    model = create_model(name, 10, **fields)
    x = images(size)
    assert_logits_equal(jax.jit(model.apply)(variables, x), torch_logits(network, x))
