import argparse
import os
import pickle
import sys
import zlib
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from resnet_jax.analysis.complexity import count_parameters
from resnet_jax.errors import UserError
from resnet_jax.interop.torch_weights import load_torch, save_torch
from resnet_jax.models import create_model, list_models, variant
from resnet_jax.models.stacking import stack_blocks

torch = pytest.importorskip("torch")
nn = torch.nn
F = torch.nn.functional

TESTS = Path(__file__).resolve().parent.parent
PUBLIC_RESNET20 = TESTS.parent.parent / "shared" / "weights" / "cifar10_resnet20_pytorch.th"

TINY = {"stage_sizes": (3, 2), "width": 4}
# As create_model's name and fields, and TorchResNet's.
TINY_NETWORKS = {
    "cifar-A": ("resnet20", {**TINY, "stem": "cifar", "shortcut": "A"}),
    "basic-B": ("resnet18", {"stage_sizes": (2, 1), "width": 8, "stem": "imagenet", "shortcut": "B"}),
    "bottleneck-B": ("resnet50", {"stage_sizes": (2, 1), "width": 8, "stem": "imagenet", "shortcut": "B"}),
}


class TorchBlock(nn.Module):
    """torchvision's block (option B; a bottleneck strides in its 3x3 convolution), or the same with option A."""

    def __init__(self, channels, filters, strides, bottleneck, shortcut):
        super().__init__()
        outputs = filters * (4 if bottleneck else 1)
        narrow, last = (filters, 3, strides), (filters, 3, 1)
        rows = [(filters, 1, 1), narrow, (outputs, 1, 1)] if bottleneck else [narrow, last]
        inputs = channels
        for k, (width, kernel, stride) in enumerate(rows, start=1):
            setattr(self, f"conv{k}", nn.Conv2d(inputs, width, kernel, stride, padding=kernel // 2, bias=False))
            setattr(self, f"bn{k}", nn.BatchNorm2d(width))
            inputs = width
        if shortcut == "B" and (strides != 1 or channels != outputs):
            projection = nn.Conv2d(channels, outputs, 1, strides, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))
        self.rows, self.strides, self.half = len(rows), strides, (outputs - channels) // 2

    def forward(self, x):
        y = x
        for k in range(1, self.rows + 1):
            y = getattr(self, f"bn{k}")(getattr(self, f"conv{k}")(y))
            y = F.relu(y) if k < self.rows else y
        if hasattr(self, "downsample"):
            return F.relu(y + self.downsample(x))
        # Half of the zeros on either side of the channels, as the public checkpoints have them.
        return F.relu(y + F.pad(x[:, :, :: self.strides, :: self.strides], (0, 0, 0, 0, self.half, self.half)))


class TorchResNet(nn.Module):
    """torchvision's ResNet and its keys, or, by default, section 4.2 with option A."""

    def __init__(
        self, stage_sizes=(3, 3, 3), width=16, bottleneck=False, stem="cifar", shortcut="A", num_classes=10, head="fc"
    ):
        super().__init__()
        size, strides = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = nn.Conv2d(3, width, size, strides, padding=size // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, padding=1) if stem == "imagenet" else nn.Identity()
        channels = width
        for i, blocks in enumerate(stage_sizes):
            stage = []
            for j in range(blocks):
                filters = width * 2**i
                stage.append(TorchBlock(channels, filters, 2 if i > 0 and j == 0 else 1, bottleneck, shortcut))
                channels = filters * (4 if bottleneck else 1)
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
        self.stages, self.head = len(stage_sizes), head
        setattr(self, head, nn.Linear(channels, num_classes))

    def forward(self, x):
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return getattr(self, self.head)(x.mean(dim=(2, 3)))


class TorchVGG(nn.Module):
    """torchvision's VGG and its keys."""

    def __init__(self, stage_sizes, width, hidden, num_classes):
        super().__init__()
        layers, channels = [], 3
        for i, convs in enumerate(stage_sizes):
            for _ in range(convs):
                layers += [nn.Conv2d(channels, width * min(2**i, 8), 3, padding=1), nn.ReLU()]
                channels = width * min(2**i, 8)
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        first, second = nn.Linear(49 * channels, hidden), nn.Linear(hidden, hidden)
        rest = [nn.ReLU(), nn.Dropout()]
        self.classifier = nn.Sequential(first, *rest, second, *rest, nn.Linear(hidden, num_classes))

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def randomised(network, seed=0):
    """The network in evaluation mode with random weights and random batch statistics."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.ndim > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif name.endswith(("weight", "running_var")):
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


def tiny_network(kind, head="fc"):
    """A PyTorch network of random weights, and ``load_torch``'s name and fields for it."""
    name, fields = TINY_NETWORKS[kind]
    network = TorchResNet(**fields, bottleneck=name == "resnet50", num_classes=10, head=head)
    placement = {"stride_placement": "v1.5"} if name == "resnet50" else {}
    return randomised(network), name, {**fields, **placement}


def random_variables(model):
    """Random numbers for every variable of a model. NumPy draws them: large networks take long to initialise."""
    rng = np.random.default_rng(0)
    template = jax.eval_shape(model.init, jax.random.key(0), images(32))

    def draw(path, leaf):
        return rng.random(leaf.shape, np.float32) - (0 if path[-1].key == "var" else 0.5)

    return jax.tree_util.tree_map_with_path(draw, template)


def load_tensors(path):
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def assert_same_tensors(actual, expected):
    assert set(actual) == set(expected)
    for key, tensor in expected.items():
        assert actual[key].dtype == tensor.dtype, key
        assert torch.equal(actual[key], tensor), key


def assert_same_variables(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.fixture(scope="module")
def resnet20():
    return jax.jit(create_model("resnet20").apply)


@pytest.fixture
def tiny_weights():
    return randomised(TorchResNet(**TINY)).state_dict()


@pytest.fixture
def tiny_variables(tiny_weights):
    return load_torch("resnet20", tiny_weights, **TINY)


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

    def draw(key, shape):
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        if key.endswith("num_batches_tracked"):
            return np.zeros(shape)
        if len(shape) > 1:
            return rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        if key.endswith("running_var"):
            return rng.uniform(0.5, 1.5, shape)
        return rng.uniform(0.3, 0.9, shape) if key.endswith("weight") else rng.normal(0, 0.1, shape)

    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    return {key: torch.tensor(draw(key, shape), dtype=torch.float32) for key, shape in shapes.items()}


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


def test_vgg_s_weights_come_back_as_they_were(tmp_path):
    network = randomised(TorchVGG((2, 2, 3, 3, 3), width=2, hidden=8, num_classes=10))
    variables = load_torch("vgg16", network.state_dict(), width=2, hidden=8)
    path = tmp_path / "vgg.safetensors"
    save_torch(variables, path, model=create_model("vgg16", 10, width=2, hidden=8))
    assert_same_tensors(load_tensors(path), network.state_dict())
    with pytest.raises(UserError, match=r"does not fit vgg19: features\.16\.bias is missing"):
        load_torch("vgg19", path, width=2, hidden=8)
    new = load_torch("vgg16", path, 3, width=2, hidden=8, new_head=True, greyscale=True)["params"]
    assert new["head"]["kernel"].shape == (8, 3) and new["conv1_1"]["kernel"].shape == (3, 3, 1, 2)


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
        {"model": tiny_weights, "optimizer": {}},
        {"state_dict": {f"model.{key}": value for key, value in tiny_weights.items()}},
        {"state_dict": {key: -value for key, value in tiny_weights.items()}, "state_dict_ema": wrapped},
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
    message = user_error(tiny_weights, fields={**TINY, "num_classes": 10})
    assert "fc.weight gives shape (8, 7) where resnet20 has (8, 10)" in message
    assert message.endswith("or new_head=True for a new classifier")


@pytest.mark.parametrize("scan_blocks", [False, True], ids=["unrolled", "scanned"])
def test_new_head_leaves_the_backbone_and_depends_on_the_seed(tiny_weights, scan_blocks):
    fields = {**TINY, "scan_blocks": scan_blocks}
    expected = load_torch("resnet20", tiny_weights, **fields)

    def load(**options):
        variables = load_torch("resnet20", tiny_weights, new_head=True, **options, **fields)
        head = variables["params"].pop("head")
        backbone = {**expected, "params": {key: expected["params"][key] for key in variables["params"]}}
        assert len(backbone["params"]) == len(expected["params"]) - 1
        assert_same_variables(variables, backbone)
        return head

    head = load(num_classes=1000)
    assert head["kernel"].shape == (8, 1000)
    # He's initialisation: standard deviation sqrt(2 / features). With 8000 draws 5 % is six times the error.
    assert float(head["kernel"].std()) == pytest.approx((2 / 8) ** 0.5, rel=0.05)
    np.testing.assert_array_equal(head["bias"], np.zeros(1000))
    assert_same_variables(load(num_classes=1000, seed=0), head)
    assert not np.array_equal(load(num_classes=1000, seed=1)["kernel"], head["kernel"])
    # As many classes as the weights have are a new classifier, too.
    assert load()["kernel"].shape == (8, 10)
    assert not np.array_equal(load()["kernel"], expected["params"]["head"]["kernel"])


@pytest.mark.parametrize("head", ["fc", "linear", "none"])
def test_new_head_takes_the_place_of_either_classifier_or_of_none(tiny_weights, head):
    names = {} if head == "none" else {"fc.weight": f"{head}.weight", "fc.bias": f"{head}.bias"}
    weights = {names.get(key, key): value for key, value in tiny_weights.items() if key in names or "fc" not in key}
    variables = load_torch("resnet20", weights, num_classes=3, new_head=True, **TINY)
    assert variables["params"]["head"]["kernel"].shape == (8, 3)
    if head == "none":
        assert user_error(weights).endswith("or new_head=True for a new classifier")


def test_new_head_is_not_the_mend_where_the_backbone_does_not_fit(tiny_weights):
    del tiny_weights["bn1.bias"]
    assert "new_head" not in user_error(tiny_weights, fields={**TINY, "num_classes": 3})
    message = user_error(tiny_weights, fields={**TINY, "num_classes": 3, "new_head": True})
    assert message.split(": ")[1].split("; ")[:-1] == ["bn1.bias is missing"]


def test_greyscale_equals_the_colour_network_on_three_equal_channels():
    network, name, fields = tiny_network("basic-B")
    variables = load_torch(name, network.state_dict(), greyscale=True, **fields)
    assert variables["params"]["stem_conv"]["kernel"].shape == (7, 7, 1, 8)
    x = images(32)[..., :1]
    logits = jax.jit(create_model(name, 10, **fields).apply)(variables, x)
    assert_logits_equal(logits, torch_logits(network, np.repeat(x, 3, axis=-1)))


def test_greyscale_takes_a_stem_of_one_channel_as_it_is_and_refuses_others(tmp_path, tiny_weights):
    grey = load_torch("resnet20", tiny_weights, greyscale=True, **TINY)
    save_torch(grey, tmp_path / "grey.safetensors", model=create_model("resnet20", **TINY))
    assert_same_variables(load_torch("resnet20", tmp_path / "grey.safetensors", greyscale=True, **TINY), grey)
    message = user_error(tmp_path / "grey.safetensors")
    assert "conv1.weight gives shape (3, 3, 1, 4) where resnet20 has (3, 3, 3, 4)" in message
    assert message.endswith("or greyscale=True for images of one channel")
    tiny_weights["conv1.weight"] = torch.zeros(4, 4, 3, 3)
    message = user_error(tiny_weights, fields={**TINY, "greyscale": True})
    assert "conv1.weight gives shape (3, 3, 4, 4) where resnet20 has (3, 3, 1, 4)" in message
    assert "greyscale" not in message


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


def save_error(variables, path, model, **options):
    with pytest.raises(UserError) as caught:
        save_torch(variables, path, model=model, **options)
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
    assert "layer2.2.bn1.running_mean is missing" in user_error(tiny_weights, fields={})
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


def test_flags_beside_the_weights_do_no_harm(tmp_path, tiny_weights, tiny_variables):
    path = tmp_path / "training.pth"
    torch.save({"model": tiny_weights, "args": argparse.Namespace(lr=0.1, output_dir="run")}, path)
    assert_same_variables(load_torch("resnet20", path, **TINY), tiny_variables)


def test_a_prefix_that_only_some_keys_have_is_part_of_them(tiny_weights):
    tiny_weights["module.bn1.bias"] = tiny_weights["bn1.bias"] + 1
    assert "module.bn1.bias has no place in resnet20" in user_error(tiny_weights)


def test_many_problems_of_a_kind_are_counted(tiny_weights):
    extra = {f"extra{i}.weight": torch.zeros(1) for i in range(9)}
    for count, listed in ((8, 8), (9, 3)):
        message = user_error({**tiny_weights, **dict(list(extra.items())[:count])})
        assert message.count("has no place in resnet20") == listed
        assert ("; ... and 6 more have no place; " in message) == (count == 9)
    message = user_error(tiny_weights, name="resnet50", fields={})
    assert "more are missing" in message and "more have other shapes" in message and len(message) < 1000


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
def test_tensors_of_other_kinds_become_float32(tmp_path, tiny_weights, tiny_variables, convert):
    def converted(value):
        return convert(value) if value.is_floating_point() else value

    weights = {key: converted(value) for key, value in tiny_weights.items()}
    save_file(weights, tmp_path / "weights.safetensors")
    for source in (weights, tmp_path / "weights.safetensors"):
        variables = load_torch("resnet20", source, **TINY)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
        # bfloat16 keeps eight significant bits.
        jax.tree.map(partial(np.testing.assert_allclose, rtol=2**-8), variables, tiny_variables)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", TINY_NETWORKS)
@pytest.mark.extensive
def test_pytorch_loads_strictly_what_was_saved_and_gives_equal_outputs(tmp_path, kind, suffix):
    network, name, fields = tiny_network(kind)
    model = create_model(name, 10, **fields)
    variables = random_variables(model)
    save_torch(variables, tmp_path / f"saved{suffix}", model=model)
    network.load_state_dict(load_tensors(tmp_path / f"saved{suffix}"), strict=True)
    assert_logits_equal(torch_logits(network, images(32)), jax.jit(model.apply)(variables, images(32)))


@pytest.mark.parametrize("kind, head", [("cifar-A", "linear"), ("basic-B", "fc"), ("bottleneck-B", "fc")])
@pytest.mark.extensive
def test_loading_and_saving_gives_the_very_tensors_of_the_source(tmp_path, kind, head):
    network, name, fields = tiny_network(kind, head)
    source = network.state_dict()
    assert source["bn1.num_batches_tracked"].dtype == torch.int64
    variables = load_torch(name, source, **fields)
    paths = {tmp_path / f"saved{suffix}" for suffix in (".pth", ".pt", ".th", ".safetensors")}
    for path in paths:
        save_torch(variables, str(path), model=create_model(name, 10, **fields), head=head)
        assert_same_tensors(load_tensors(path), source)
    assert set(tmp_path.iterdir()) == paths


# One of each kind; the others have the same layers more often.
QUICK = ("resnet20",)
LATER = ("resnetrs50", "ecaresnet26t", "resnetv2_50d_evos", "resnetv2_50d_frn", "resnetv2_50x1_bit", "wrn28_10")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.extensive)
        for name in [*(name for name in list_models() if variant(name).in_paper), *LATER]
    ],
)
def test_saving_and_loading_gives_the_same_bits_for_every_model(tmp_path, name):
    # The CIFAR networks as they are, the ImageNet ones a quarter as wide.
    model = create_model(name, width=16)
    variables = random_variables(model)
    save_torch(variables, tmp_path / "saved.pth", model=model)
    assert_same_variables(load_torch(name, tmp_path / "saved.pth", width=16), variables)
    save_torch(variables, tmp_path / "saved.safetensors", model=model)
    assert_same_tensors(load_tensors(tmp_path / "saved.safetensors"), load_tensors(tmp_path / "saved.pth"))


def test_an_initialised_scanned_network_comes_back_from_its_file(tmp_path):
    fields = {"stage_sizes": (3,), "width": 4, "scan_blocks": True}
    model = create_model("resnet20", **fields)
    variables = jax.jit(model.init)(jax.random.key(0), images(8))
    for suffix in (".pth", ".safetensors"):
        save_torch(variables, tmp_path / f"saved{suffix}", model=model)
        assert_same_variables(load_torch("resnet20", tmp_path / f"saved{suffix}", **fields), variables)


def test_scanned_networks_are_saved_as_unrolled_ones(tmp_path, tiny_weights, tiny_variables):
    model = create_model("resnet20", **TINY, scan_blocks=True)
    save_torch(stack_blocks(tiny_variables), tmp_path / "scanned.pth", model=model)
    assert_same_tensors(load_tensors(tmp_path / "scanned.pth"), tiny_weights)


@pytest.mark.parametrize("shortcut", ["A", "C", "none"])
def test_shortcuts_that_torchvision_lacks_are_saved_as_well(tmp_path, shortcut):
    fields = {**TINY, "shortcut": shortcut}
    model = create_model("resnet20", **fields)
    variables = random_variables(model)
    save_torch(variables, tmp_path / "saved.pth", model=model)
    assert_same_variables(load_torch("resnet20", tmp_path / "saved.pth", **fields), variables)
    assert any("downsample" in key for key in load_tensors(tmp_path / "saved.pth")) == (shortcut == "C")


def test_without_pytorch_safetensors_are_written_and_read_and_others_are_a_user_error(
    tmp_path, monkeypatch, tiny_weights, tiny_variables
):
    torch.save(tiny_weights, tmp_path / "old.pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    model = create_model("resnet20", **TINY)
    save_torch(tiny_variables, tmp_path / "new.safetensors", model=model)
    assert_same_variables(load_torch("resnet20", tmp_path / "new.safetensors", **TINY), tiny_variables)
    assert user_error(tmp_path / "old.pth").endswith("needs torch: pip install torch")
    message = save_error(tiny_variables, tmp_path / "new.pth", model)
    assert message.endswith("needs torch: pip install torch, or write .safetensors")
    assert not (tmp_path / "new.pth").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_variables_that_do_not_fit_the_model_are_listed_and_nothing_is_written(tmp_path, tiny_variables, suffix):
    params, stats = tiny_variables["params"], tiny_variables["batch_stats"]
    del params["stem_bn"]["bias"], stats["stage1_block3"]["bn2"]["var"]
    params["head"]["kernel"] = jnp.zeros((8, 7))
    params["stage2_block1"]["projection_conv"] = {"kernel": jnp.zeros((1, 1, 4, 8))}
    message = save_error(tiny_variables, tmp_path / f"saved{suffix}", create_model("resnet20", **TINY))
    problems = [
        "params/stem_bn/bias is missing",
        "batch_stats/stage1_block3/bn2/var is missing",
        "params/head/kernel gives shape (8, 7) where the model has (8, 10)",
        "params/stage2_block1/projection_conv/kernel has no place in the model",
    ]
    assert message.startswith("the variables do not fit the model: ")
    assert sorted(message.split(": ", 1)[1].split("; ")[:-1]) == sorted(problems)
    assert not list(tmp_path.iterdir())


def test_parameters_without_statistics_or_of_the_other_layout_do_not_fit(tmp_path, tiny_variables):
    model, path = create_model("resnet20", **TINY), tmp_path / "saved.pth"
    message = save_error({"params": tiny_variables["params"]}, path, model)
    assert "batch_stats/stage1_block1/bn1/mean is missing" in message and "has no place" not in message
    message = save_error(tiny_variables["params"], path, model)
    assert "more are missing" in message and "head/kernel has no place in the model" in message
    scanned = create_model("resnet20", **TINY, scan_blocks=True)
    assert "batch_stats/stage1_blocks/bn1/mean is missing" in save_error(tiny_variables, path, scanned)


@pytest.mark.parametrize("name", ["saved.npz", "saved", "saved.tar"])
def test_another_suffix_is_a_user_error_that_names_the_valid_ones(tmp_path, tiny_variables, name):
    message = save_error(tiny_variables, tmp_path / name, create_model("resnet20", **TINY))
    assert message == (f"{tmp_path / name} has no known suffix of PyTorch weights; use .pth, .pt, .th or .safetensors")


def test_places_that_cannot_be_written_are_user_errors_that_name_them(tmp_path, tiny_variables):
    model = create_model("resnet20", **TINY)
    message = save_error(tiny_variables, tmp_path / "absent" / "saved.pth", model)
    assert message.startswith(f"there is no folder {tmp_path / 'absent'} to write saved.pth in")
    (tmp_path / "folder.pth").mkdir()
    assert save_error(tiny_variables, tmp_path / "folder.pth", model).startswith(
        f"cannot write {tmp_path / 'folder.pth'}"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["folder.pth"]


def test_another_name_of_the_classifier_is_a_user_error(tmp_path, tiny_variables):
    message = save_error(tiny_variables, tmp_path / "saved.pth", create_model("resnet20", **TINY), head="top")
    assert message == "head is 'top'; it must be 'fc' or 'linear'"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_was_there_stays_when_the_disk_is_full(tmp_path, monkeypatch, tiny_variables, suffix):
    path = tmp_path / f"saved{suffix}"
    path.write_bytes(b"old")

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    message = save_error(tiny_variables, path, create_model("resnet20", **TINY))
    assert message.startswith(f"cannot write {path} ([Errno 28] No space left on device)")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
