"""The sides of ``detector``, by torchvision.

The compiled operations in torchvision's wheels are for PyTorch with CUDA. Beside a CPU build of PyTorch they are
missing: suppression is then ``nms`` below, exact and without a loop over boxes, and RoIAlign torchvision's own form in
tensor operations, which it compiles by ``torch.compile``. ``layers_inference`` and ``layers_training`` use neither.
"""

import importlib
import os
from typing import Any

import torch
from torch import nn

from benchmarks.detector import LEARNING_RATE, NORM_SCALE, SCORE_BIASES, DetectorWorkload
from benchmarks.timing import Run, timed
from benchmarks.torch_steps import autocast, synchronize


def training(workload: DetectorWorkload, compiled: bool) -> Run:
    """channels_last; under autocast where the workload's dtype is bfloat16. compiled: RoIAlign, where it can be."""
    model, images, targets = _model(workload, compiled)
    optimizer = _optimizer(model)

    def call() -> None:
        optimizer.zero_grad()
        with autocast(workload.dtype, images):
            sum(_detector(workload, model, images, targets)[1].values()).backward()
        optimizer.step()

    for _ in range(5 if compiled else 0):  # RoIAlign is compiled anew for some numbers of regions on a map.
        call()
    return timed(call, workload.batch_size, lambda _: synchronize(images))


def inference(workload: DetectorWorkload, compiled: bool) -> Run:
    """Detections from normalised images, in evaluation mode without gradients."""
    model, images, _ = _model(workload, compiled)
    model.eval()

    def call() -> Any:
        with torch.no_grad(), autocast(workload.dtype, images):
            return _detector(workload, model, images, None)[0]

    return timed(call, workload.batch_size, lambda _: synchronize(images))


def layers_inference(workload: DetectorWorkload, compiled: bool) -> Run:
    """As ours."""
    model, images, _ = _model(workload, compiled)
    pooled = _pooled(workload, images, workload.proposals)

    def call() -> None:
        with torch.inference_mode(), autocast(workload.dtype, images):
            _layers(model, images, pooled)

    return timed(call, workload.batch_size, lambda _: synchronize(images))


def layers_training(workload: DetectorWorkload, compiled: bool) -> Run:
    """As ours."""
    model, images, _ = _model(workload, compiled)
    pooled = _pooled(workload, images, workload.samples).requires_grad_()

    def call() -> None:
        model.zero_grad()
        pooled.grad = None
        with autocast(workload.dtype, images):
            outputs = _layers(model, images, pooled)
            total = sum((output.float().square().mean() for output in outputs), torch.zeros((), device=images.device))
        total.backward()

    return timed(call, workload.batch_size, lambda _: synchronize(images))


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """The indices of the boxes that greedy suppression keeps, by falling score.

    A box is kept if no kept one of a higher score overlaps it; this is repeated for all boxes at once until nothing
    changes.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order]
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    first = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    last = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (last - first).clamp_(min=0).prod(dim=2)
    suppresses = (shared > iou_threshold * (area[:, None] + area[None, :] - shared)).float().triu_(1)
    keep = torch.ones_like(scores, dtype=torch.bool)
    while True:
        new = keep.float() @ suppresses == 0
        if torch.equal(new, keep):
            return order[keep]
        keep = new


def _torchvision(compiled: bool) -> Any:
    """torchvision, with replacements for what it has not compiled."""
    # Type checkers would read the source, and it need not be installed.
    try:
        importlib.import_module("torchvision")
    except RuntimeError:  # It registers shapes for operations that are not there; they only have to be declared.
        declared = torch.library.Library("torchvision", "DEF")
        declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(declared)
    torchvision: Any = importlib.import_module("torchvision")
    if not torchvision.extension._has_ops():
        boxes: Any = importlib.import_module("torchvision.ops.boxes")
        boxes.nms = nms
        align: Any = importlib.import_module("torchvision.ops.roi_align")
        if compiled:  # For each map and for some numbers of regions; beyond its limit PyTorch would stop compiling.
            importlib.import_module("torch._dynamo").config.recompile_limit = 64
        else:
            align._roi_align = getattr(align._roi_align, "__wrapped__", align._roi_align)
    return torchvision


_declared: list[Any] = []  # What is declared lasts as long as this.


def _model(workload: DetectorWorkload, compiled: bool) -> tuple[Any, torch.Tensor, list[dict[str, torch.Tensor]]]:
    _torchvision(compiled)
    parts: Any = importlib.import_module("torchvision.models.detection.faster_rcnn")
    utils: Any = importlib.import_module("torchvision.models.detection.backbone_utils")
    resnet: Any = importlib.import_module("torchvision.models.resnet")
    frozen: Any = importlib.import_module("torchvision.ops.misc").FrozenBatchNorm2d
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cudnn.benchmark = True
    # As in ``torch_steps``: oneDNN may corrupt memory at tiny images, those of toy runs.
    torch.backends.mkldnn.enabled = workload.stages is None  # type: ignore[assignment]
    network = resnet.ResNet(resnet.Bottleneck, list(workload.stage_sizes), norm_layer=frozen)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(("layer2", "layer3", "layer4")))
    levels = {f"layer{i + 1}": str(i) for i in range(4)}
    model = parts.FasterRCNN(
        utils.BackboneWithFPN(network, levels, [256, 512, 1024, 2048], workload.channels),
        box_head=parts.TwoMLPHead(49 * workload.channels, workload.hidden),
        box_predictor=parts.FastRCNNPredictor(workload.hidden, workload.num_classes + 1),
        rpn_post_nms_top_n_train=workload.proposals,
        rpn_post_nms_top_n_test=workload.proposals,
        box_batch_size_per_image=workload.samples,
    )
    for module in model.modules():
        if isinstance(module, frozen):
            module.weight.fill_(NORM_SCALE)
    background, first, others = SCORE_BIASES
    predictor = model.roi_heads.box_predictor
    with torch.no_grad():
        predictor.cls_score.weight.normal_(0, 0.01)
        predictor.bbox_pred.weight.normal_(0, 0.001)
        predictor.cls_score.bias.fill_(others)[0] = background
        predictor.cls_score.bias[1] = first
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device, memory_format=torch.channels_last).train()
    batch = workload.batch()
    images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    targets = [
        {"boxes": torch.from_numpy(boxes).to(device), "labels": torch.from_numpy(labels).long().to(device) + 1}
        for boxes, labels in zip(batch["boxes"], batch["labels"], strict=True)
    ]
    return model, images, targets


def _detector(workload: DetectorWorkload, model: Any, images: torch.Tensor, targets: Any) -> tuple[Any, Any]:
    """(Detections, losses): the model without its own resizing and normalising, which ours has not either."""
    lists: Any = importlib.import_module("torchvision.models.detection.image_list")
    sizes = [workload.size] * len(images)
    maps = model.backbone(images)
    proposals, losses = model.rpn(lists.ImageList(images, sizes), maps, targets)
    detections, box_losses = model.roi_heads(maps, proposals, sizes, targets)
    return detections, losses | box_losses


def _layers(model: Any, images: torch.Tensor, pooled: torch.Tensor) -> list[torch.Tensor]:
    scores, deltas = model.rpn.head(list(model.backbone(images).values()))
    return [*scores, *deltas, *model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))]


def _pooled(workload: DetectorWorkload, images: torch.Tensor, regions: int) -> torch.Tensor:
    """Random pooled regions, so many of each image."""
    return torch.rand(workload.batch_size * regions, workload.channels, 7, 7, device=images.device)


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(trained, lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4)
