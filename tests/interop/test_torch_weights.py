import pickle
import zlib
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from resnet_jax.analysis.complexity import count_parameters
from resnet_jax.errors import UserError
from resnet_jax.interop.torch_weights import load_torch
from resnet_jax.models import create_model

TESTS = Path(__file__).resolve().parent.parent
PUBLIC_RESNET20 = TESTS.parent.parent / "shared" / "weights" / "cifar10_resnet20_pytorch.th"

TINY = {"stage_sizes": (3, 2), "width": 4}


class TorchBlock(nn.Module):
    def __init__(self, channels, filters, strides):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3, strides, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.strides = strides
        self.half = (filters - channels) // 2

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + F.pad(x[:, :, :: self.strides, :: self.strides], (0, 0, 0, 0, self.half, self.half)))


class TorchCifarResNet(nn.Module):
    """Section 4.2 with option A; half of the zeros on either side of the channels, as the public checkpoints have."""

    def __init__(self, stage_sizes=(3, 3, 3), width=16, head="fc"):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for i, size in enumerate(stage_sizes):
            blocks = []
            for j in range(size):
                blocks.append(TorchBlock(channels, width * 2**i, 2 if i > 0 and j == 0 else 1))
                channels = width * 2**i
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.stages, self.head = len(stage_sizes), head
        setattr(self, head, nn.Linear(channels, 10))

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return getattr(self, self.head)(x.mean(dim=(2, 3)))


def randomised(network, seed=0):
    """The network in evaluation mode with random weights and random batch statistics."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.ndim > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif "bn" in name and name.endswith(("weight", "running_var")):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(0, 0.3, generator=generator)
    return network.eval()


def assert_logits_equal(actual, expected, tolerance=1e-4):
    expected = np.asarray(expected)
    assert expected.std() > 0.1
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def torch_logits(network, x):
    with torch.no_grad():
        return network(torch.tensor(x).permute(0, 3, 1, 2)).numpy()


def images(size, seed=1):
    return np.random.default_rng(seed).normal(size=(4, size, size, 3)).astype(np.float32)


def assert_same_variables(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.fixture(scope="module")
def resnet20():
    return jax.jit(create_model("resnet20").apply)


@pytest.fixture
def tiny_weights():
    return randomised(TorchCifarResNet(**TINY)).state_dict()


@pytest.fixture
def tiny_variables(tiny_weights):
    return load_torch("resnet20", tiny_weights, **TINY)


def test_logits_equal_those_of_pytorch_with_random_weights_and_statistics(resnet20):
    network = randomised(TorchCifarResNet())
    variables = load_torch("resnet20", network.state_dict())
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert_logits_equal(resnet20(variables, images(32)), torch_logits(network, images(32)))


def test_logits_of_the_public_checkpoint_equal_those_of_pytorch(resnet20):
    if not PUBLIC_RESNET20.is_file():
        pytest.skip(f"needs the public ResNet-20 checkpoint as {PUBLIC_RESNET20}")
    network = TorchCifarResNet(head="linear")
    weights = torch.load(PUBLIC_RESNET20, map_location="cpu", weights_only=True)["state_dict"]
    network.load_state_dict({key.removeprefix("module."): value for key, value in weights.items()})
    variables = load_torch("resnet20", PUBLIC_RESNET20)
    assert_logits_equal(resnet20(variables, images(32)), torch_logits(network.eval(), images(32)))


def test_scanned_layout_gives_the_logits_of_pytorch():
    network = randomised(TorchCifarResNet(**TINY))
    variables = load_torch("resnet20", network.state_dict(), **TINY, scan_blocks=True)
    assert "stage1_blocks" in variables["params"]
    model = create_model("resnet20", **TINY, scan_blocks=True)
    assert_logits_equal(jax.jit(model.apply)(variables, images(8)), torch_logits(network, images(8)))


def golden_state_dict(stage_sizes, bottleneck):
    """torchvision's keys and shapes, each array drawn from a generator that its key seeds.

    The files in tests/golden hold what torchvision 0.28 computes with these weights.
    """
    shapes = {"conv1.weight": (64, 3, 7, 7)}

    def add_norm(name, channels):
        shapes.update({f"{name}.{leaf}": (channels,) for leaf in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    add_norm("bn1", 64)
    channels = 64
    for i, size in enumerate(stage_sizes):
        filters = 64 * 2**i
        outputs = filters * (4 if bottleneck else 1)
        rows = [(filters, 1), (filters, 3), (outputs, 1)] if bottleneck else [(filters, 3), (filters, 3)]
        for j in range(size):
            block, inputs = f"layer{i + 1}.{j}", channels
            for k, (width, kernel) in enumerate(rows, start=1):
                shapes[f"{block}.conv{k}.weight"] = (width, inputs, kernel, kernel)
                add_norm(f"{block}.bn{k}", width)
                inputs = width
            if j == 0 and (i > 0 or bottleneck):
                shapes[f"{block}.downsample.0.weight"] = (outputs, channels, 1, 1)
                add_norm(f"{block}.downsample.1", outputs)
            channels = outputs
    shapes |= {"fc.weight": (1000, channels), "fc.bias": (1000,)}

    def draw(key, shape):
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        if key.endswith("num_batches_tracked"):
            return np.zeros(shape)
        if len(shape) > 1:
            return rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        if key.endswith("running_var"):
            return rng.uniform(0.5, 1.5, shape)
        return rng.uniform(0.3, 0.9, shape) if key.endswith("weight") else rng.normal(0, 0.1, shape)

    return {key: draw(key, shape).astype(np.float32) for key, shape in shapes.items()}


@pytest.mark.parametrize(
    "name, fields, stage_sizes, bottleneck",
    [("resnet18", {}, (2, 2, 2, 2), False), ("resnet50", {"stride_placement": "v1.5"}, (3, 4, 6, 3), True)],
    ids=["resnet18", "resnet50"],
)
def test_imagenet_networks_give_the_outputs_of_torchvision(name, fields, stage_sizes, bottleneck):
    expected = np.load(TESTS / "golden" / f"torchvision_{name}.npz")
    variables = load_torch(name, golden_state_dict(stage_sizes, bottleneck), **fields)
    model = create_model(name, **fields)
    assert count_parameters(model) == expected["parameter_count"]

    @jax.jit
    def run(variables, x):
        features = model.apply(variables, x, features=True)
        return model.apply(variables, x), {stage: output.mean(axis=(1, 2)) for stage, output in features.items()}

    x = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32).transpose(0, 2, 3, 1)
    logits, means = run(variables, x)
    assert_logits_equal(logits, expected["logits"])
    for i in range(1, 5):
        assert_logits_equal(means[f"C{i + 1}"], expected[f"layer{i}_mean"])


def test_arrays_land_in_their_places_in_jax_layout(tiny_weights, tiny_variables):
    params, stats = tiny_variables["params"], tiny_variables["batch_stats"]
    kernel = tiny_weights["layer2.0.conv1.weight"].numpy()
    assert kernel.shape == (8, 4, 3, 3)
    np.testing.assert_array_equal(params["stage2_block1"]["conv1"]["kernel"], np.einsum("oihw->hwio", kernel))
    np.testing.assert_array_equal(params["stage1_block3"]["bn2"]["scale"], tiny_weights["layer1.2.bn2.weight"])
    np.testing.assert_array_equal(stats["stem_bn"]["var"], tiny_weights["bn1.running_var"])
    np.testing.assert_array_equal(stats["stage2_block2"]["bn1"]["mean"], tiny_weights["layer2.1.bn1.running_mean"])
    np.testing.assert_array_equal(params["head"]["kernel"], tiny_weights["fc.weight"].T)


def test_keys_of_data_parallel_wrappers_and_of_either_classifier_are_the_same(tiny_weights, tiny_variables):
    linear = {key.replace("fc.", "linear."): value for key, value in tiny_weights.items()}
    wrapped = {f"module.{key}": value for key, value in tiny_weights.items()}
    for weights in (
        linear,
        wrapped,
        {"state_dict": wrapped, "epoch": 3},
        {"state_dict": {f"module.{key}": value for key, value in linear.items()}},
        {key: value.numpy() for key, value in tiny_weights.items()},
        {key: value for key, value in tiny_weights.items() if not key.endswith("num_batches_tracked")},
    ):
        assert_same_variables(load_torch("resnet20", weights, **TINY), tiny_variables)


def test_the_state_dict_itself_is_left_as_it_was(tiny_weights):
    keys = list(tiny_weights)
    load_torch("resnet20", tiny_weights, **TINY)
    assert list(tiny_weights) == keys


def test_number_of_classes_follows_the_weights_unless_given(tiny_weights):
    tiny_weights["fc.weight"], tiny_weights["fc.bias"] = torch.zeros(7, 8), torch.zeros(7)
    assert load_torch("resnet20", tiny_weights, **TINY)["params"]["head"]["kernel"].shape == (8, 7)
    with pytest.raises(UserError, match=r"fc.weight gives shape \(8, 7\) where resnet20 has \(8, 10\)"):
        load_torch("resnet20", tiny_weights, num_classes=10, **TINY)


@pytest.mark.parametrize("suffix", [".pth", ".th", ".pt", ".tar", ".safetensors"])
@pytest.mark.parametrize("as_text", [False, True], ids=["Path", "str"])
def test_files_give_the_variables_of_their_state_dict(tmp_path, tiny_weights, tiny_variables, suffix, as_text):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(tiny_weights, path)
    else:
        torch.save({"state_dict": tiny_weights, "best_prec1": 91.7}, path)
    assert_same_variables(load_torch("resnet20", str(path) if as_text else path, **TINY), tiny_variables)


def user_error(source, name="resnet20", fields=TINY):
    with pytest.raises(UserError) as caught:
        load_torch(name, source, **fields)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_left_over_and_misshapen_keys_are_all_listed_in_one_line(tmp_path, tiny_weights):
    for key in ("bn1.bias", "layer1.2.conv2.weight", "layer2.0.bn1.running_var"):
        del tiny_weights[key]
    tiny_weights["layer3.0.conv1.weight"] = torch.zeros(16, 8, 3, 3)
    tiny_weights["layer2.0.downsample.0.weight"] = torch.zeros(8, 4, 1, 1)
    tiny_weights["conv1.weight"] = torch.zeros(4, 3, 7, 7)
    tiny_weights["layer1.0.bn1.weight"] = torch.zeros(5)
    problems = [
        "bn1.bias is missing",
        "layer1.2.conv2.weight is missing",
        "layer2.0.bn1.running_var is missing",
        "layer3.0.conv1.weight has no place in resnet20",
        "layer2.0.downsample.0.weight has no place in resnet20",
        "conv1.weight gives shape (7, 7, 3, 4) where resnet20 has (3, 3, 3, 4)",
        "layer1.0.bn1.weight gives shape (5,) where resnet20 has (4,)",
    ]
    message = user_error(tiny_weights)
    assert message.startswith("the state dict does not fit resnet20: ")
    # Between the opening and the advice at the end: these problems and no others.
    assert sorted(message.split(": ", 1)[1].split("; ")[:-1]) == sorted(problems)
    torch.save(tiny_weights, tmp_path / "odd.pth")
    assert user_error(tmp_path / "odd.pth").startswith(f"{tmp_path / 'odd.pth'} does not fit resnet20: ")


def test_weights_of_another_network_do_not_fit(tiny_weights):
    assert "layer3.0.conv1.weight is missing" in user_error(tiny_weights, fields={})
    assert "layer2.0.downsample.0.weight is missing" in user_error(tiny_weights, fields={**TINY, "shortcut": "B"})
    assert "unknown model 'resnet21'" in user_error(tiny_weights, name="resnet21")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_absent_file_is_a_user_error_that_names_it(tmp_path, suffix):
    path = tmp_path / f"absent{suffix}"
    assert f"there is no file {path}" in user_error(path)
    assert f"there is no file {tmp_path}" in user_error(tmp_path)


@pytest.mark.parametrize("suffix", [".pth", ".th", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"<html>404: Not Found</html>\n" * 20, "truncated"], ids=["empty", "html", "cut"]
)
def test_damaged_file_is_a_user_error_that_names_it(tmp_path, tiny_weights, suffix, content):
    path = tmp_path / f"damaged{suffix}"
    if content == "truncated":
        save_file(tiny_weights, path) if suffix == ".safetensors" else torch.save(tiny_weights, path)
        content = path.read_bytes()[:-2000]
    path.write_bytes(content)
    assert f"{path} cannot be read as PyTorch weights" in user_error(path)


def test_file_that_would_run_code_is_refused(tmp_path):
    marker = tmp_path / "ran"

    class Malicious:
        def __reduce__(self):
            return Path.touch, (marker,)

    path = tmp_path / "malicious.pth"
    path.write_bytes(pickle.dumps({"fc.weight": Malicious()}))
    assert str(path) in user_error(path)
    assert not marker.exists()


def test_whole_module_in_place_of_its_state_dict_is_a_user_error(tmp_path):
    path = tmp_path / "module.pth"
    torch.save(nn.Linear(2, 2), path)
    assert str(path) in user_error(path)


def test_file_that_holds_no_state_dict_is_a_user_error(tmp_path):
    path = tmp_path / "wrong.pth"
    torch.save([torch.zeros(3)], path)
    assert f"{path} holds a list, not a state dict" in user_error(path)


@pytest.mark.parametrize(
    "content",
    [{"epoch": 3}, {"state_dict": {}}, {0: torch.zeros(3)}, {"fc.weight": 0.5}],
    ids=["no-weights", "empty", "numbered", "number-for-a-tensor"],
)
def test_file_that_holds_other_things_is_a_user_error(tmp_path, content):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    message = user_error(path)
    assert str(path) in message


@pytest.mark.parametrize(
    "convert", [torch.Tensor.bfloat16, torch.Tensor.half, nn.Parameter], ids=["bf16", "f16", "parameter"]
)
def test_tensors_of_other_kinds_become_float32(tiny_weights, tiny_variables, convert):
    def converted(value):
        return convert(value) if value.is_floating_point() else value

    variables = load_torch("resnet20", {key: converted(value) for key, value in tiny_weights.items()}, **TINY)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    # bfloat16 keeps eight significant bits.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2**-8), variables, tiny_variables)
