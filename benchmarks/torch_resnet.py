"""The paper's CIFAR networks in PyTorch, as a peer for timing."""

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


def cifar_resnet(layers: int, num_classes: int = 10) -> nn.Module:
    """The 6n+2-layer network, taking (N, 3, 32, 32)."""
    modules: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    inputs = 16
    for stage, filters in enumerate((16, 32, 64)):
        for block in range((layers - 2) // 6):
            modules.append(BasicBlock(inputs, filters, strides=2 if stage and not block else 1))
            inputs = filters
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))
