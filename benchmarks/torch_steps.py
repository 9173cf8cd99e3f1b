"""The same steps as in ``steps``, by PyTorch."""

import os
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.timing import Run, timed
from benchmarks.torch_resnet import cifar_resnet, imagenet_resnet
from benchmarks.workload import LEARNING_RATE, Workload


def training(workload: Workload, compiled: bool = False) -> Run:
    """channels_last; under autocast where the workload's dtype is bfloat16."""
    model, images, labels = _model(workload)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4)
    network = torch.compile(model, mode=_mode(images)) if compiled else model

    def call() -> None:
        optimizer.zero_grad()
        with autocast(workload.dtype, images):
            loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()

    return timed(call, workload.batch_size, lambda _: synchronize(images))


def inference(workload: Workload, compiled: bool = False) -> Run:
    """Logits from images, channels_last, in evaluation mode without gradients."""
    model, images, _ = _model(workload)
    model.eval()
    network = torch.compile(model, mode=_mode(images)) if compiled else model

    def call() -> None:
        with torch.inference_mode(), autocast(workload.dtype, images):
            network(images)

    return timed(call, workload.batch_size, lambda _: synchronize(images))


def _model(workload: Workload) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cudnn.benchmark = True  # It then tries algorithms, as XLA does.
    # On some CPUs PyTorch 2.13's oneDNN corrupts memory at tiny channels-last images, those of toy runs.
    torch.backends.mkldnn.enabled = workload.width is None  # type: ignore[assignment]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    make = imagenet_resnet if workload.imagenet else cifar_resnet
    model = make(workload.stage_sizes, workload.channels).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = workload.batch()
    images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2)
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    return model, images, torch.from_numpy(batch["label"]).long().to(device)


def _mode(images: torch.Tensor) -> str:
    return "reduce-overhead" if images.is_cuda else "default"  # CUDA graphs; "max-autotune" compiles for many minutes.


def autocast(dtype: str, images: torch.Tensor) -> Any:
    """What the forward pass runs in, on the device of ``images``."""
    return torch.autocast(images.device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()


def synchronize(images: torch.Tensor) -> None:
    """Waits for the device of ``images``."""
    if images.is_cuda:
        torch.cuda.synchronize()
