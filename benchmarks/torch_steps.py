"""The same steps as in ``steps``, by PyTorch."""

import os
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.task import LEARNING_RATE, Task
from benchmarks.timing import Run, timed
from benchmarks.torch_resnet import cifar_resnet, imagenet_resnet
from resnet_jax.models import create_model


def training(task: Task, compiled: bool = False) -> Run:
    """channels_last; under autocast where the task's dtype is bfloat16."""
    model, images, labels = _model(task)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4)
    network = torch.compile(model, mode=_mode(images)) if compiled else model

    def call() -> None:
        optimizer.zero_grad()
        with _autocast(task, images):
            loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()

    return timed(call, task.batch_size, lambda _: _synchronize(images))


def inference(task: Task, compiled: bool = False) -> Run:
    """Logits from images, channels_last, in evaluation mode without gradients."""
    model, images, _ = _model(task)
    model.eval()
    network = torch.compile(model, mode=_mode(images)) if compiled else model

    def call() -> None:
        with torch.inference_mode(), _autocast(task, images):
            network(images)

    return timed(call, task.batch_size, lambda _: _synchronize(images))


def _model(task: Task) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cudnn.benchmark = True  # It then tries algorithms, as XLA does.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    named = create_model(task.model)
    make = imagenet_resnet if task.imagenet else cifar_resnet
    model = make(named.stage_sizes, task.width or named.width).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = task.batch()
    images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2)
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    return model, images, torch.from_numpy(batch["label"]).long().to(device)


def _mode(images: torch.Tensor) -> str:
    return "max-autotune" if images.is_cuda else "default"


def _autocast(task: Task, images: torch.Tensor) -> Any:
    return torch.autocast(images.device.type, torch.bfloat16) if task.dtype == "bfloat16" else nullcontext()


def _synchronize(images: torch.Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize()
