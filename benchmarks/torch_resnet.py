"""The paper's CIFAR networks and ResNet-50 in PyTorch, as a peer for timing."""

import torch
import torch.nn.functional as F
from torch import nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with option A's shortcut."""

    def __init__(self, inputs: int, outputs: int, strides: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, strides, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.strides, self.extra = strides, outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        if self.extra:
            half = self.extra // 2
            x = F.pad(x[:, :, :: self.strides, :: self.strides], (0, 0, 0, 0, half, self.extra - half))
        return F.relu(x + y, inplace=True)


class BottleneckBlock(nn.Module):
    """1x1, 3x3 (with the stride: v1.5) and 1x1 convolutions, with a projection where the shape changes."""

    def __init__(self, inputs: int, filters: int, strides: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, filters, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, strides, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.conv3 = nn.Conv2d(filters, 4 * filters, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * filters)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != 4 * filters:
            projection = nn.Conv2d(inputs, 4 * filters, 1, strides, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(4 * filters))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x), inplace=True)


def cifar_resnet(stage_sizes: tuple[int, ...], width: int) -> nn.Module:
    """A network of section 4.2, taking (N, 3, H, W)."""
    modules: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    inputs = width
    for stage, blocks in enumerate(stage_sizes):
        for block in range(blocks):
            filters = width * 2**stage
            modules.append(BasicBlock(inputs, filters, strides=2 if stage and not block else 1))
            inputs = filters
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def imagenet_resnet(stage_sizes: tuple[int, ...], width: int) -> nn.Module:
    """A bottleneck network of Table 1, v1.5, taking (N, 3, H, W)."""
    modules: list[nn.Module] = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    modules.append(nn.MaxPool2d(3, 2, 1))
    inputs = width
    for stage, blocks in enumerate(stage_sizes):
        for block in range(blocks):
            filters = width * 2**stage
            modules.append(BottleneckBlock(inputs, filters, strides=2 if stage and not block else 1))
            inputs = 4 * filters
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))
