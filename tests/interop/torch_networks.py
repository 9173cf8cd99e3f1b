"""Networks in PyTorch with torchvision's keys, and comparisons of logits, tensors and variables."""

import jax
import numpy as np
import pytest
from safetensors.torch import load_file

from resnet_jax.errors import UserError
from resnet_jax.interop.torch_weights import load_torch

torch = pytest.importorskip("torch")
nn = torch.nn
F = torch.nn.functional

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


def user_error(source, name="resnet20", fields=TINY):
    with pytest.raises(UserError) as caught:
        load_torch(name, source, **fields)
    message = str(caught.value)
    assert "\n" not in message
    return message
