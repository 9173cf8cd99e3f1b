"""Detection: Faster R-CNN on a network of the zoo, trained jointly, scored by average precision (section 4.3)."""

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from pydantic import Field

from resnet_jax.data.normalization import Normalization
from resnet_jax.data.transforms import Transforms
from resnet_jax.detection.anchors import Anchors
from resnet_jax.detection.backbones import FPN, c4, trainable, with_weights
from resnet_jax.detection.faster_rcnn import (
    BoxSettings,
    FasterRCNN,
    Pooling,
    Targets,
    training_losses,
)
from resnet_jax.detection.rpn import RPNSettings
from resnet_jax.errors import UserError
from resnet_jax.evaluation.detection.detector import SINGLE, Testing, make_detector, on_canvas
from resnet_jax.evaluation.detection.predict import detections_in
from resnet_jax.evaluation.detection.report import draw_detections, plot_precision_recall, write_class_table
from resnet_jax.evaluation.detection.scores import Metric, Scored, score
from resnet_jax.interop.torch_detection import load_torch_detection
from resnet_jax.models.model import Model
from resnet_jax.parts import Count, NonNegativeFloat, NonNegativeInt, Part, ascending
from resnet_jax.tasks.task import Batch, Described, Member, Score, Variables

Unit = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]

PROTOCOLS = ("single", "refine", "multi_scale", "refine+multi_scale")


_RPN, _BOX = RPNSettings(), BoxSettings()


class ProposalNetwork(Part):
    """The region proposal network. channels: of its 3x3 convolution; the rest is ``RPNSettings``'s, which says more."""

    channels: Count = 256
    positive: Unit = _RPN.positive
    negative: Unit = _RPN.negative
    samples: Count = _RPN.samples
    fraction: Unit = _RPN.fraction
    straddle: NonNegativeFloat | None = _RPN.straddle
    beta: NonNegativeFloat = _RPN.beta
    train_pre_nms: Count = _RPN.train_pre_nms
    train_post_nms: Count = _RPN.train_post_nms
    test_pre_nms: Count = _RPN.test_pre_nms
    test_post_nms: Count = _RPN.test_post_nms
    nms: Unit = _RPN.nms
    min_size: NonNegativeFloat = _RPN.min_size

    def settings(self) -> RPNSettings:
        return RPNSettings(**self.model_dump(exclude={"channels"}))


class BoxHead(Part):
    """The second stage; ``BoxSettings`` says what each key is."""

    positive: Unit = _BOX.positive
    negative: tuple[Unit, Unit] = _BOX.negative
    samples: Count = _BOX.samples
    fraction: Unit = _BOX.fraction
    weights: tuple[Positive, Positive, Positive, Positive] = _BOX.weights
    beta: NonNegativeFloat = 1 / 9  # As torchvision's; the library's default is Fast R-CNN's 1.
    min_score: Unit = _BOX.min_score
    candidates: Count = _BOX.candidates
    nms: Unit = _BOX.nms
    vote: Unit | None = _BOX.vote
    detections: Count = _BOX.detections
    min_size: NonNegativeFloat = _BOX.min_size

    def settings(self) -> BoxSettings:
        ascending(self.negative)
        return BoxSettings(**self.model_dump())


class RegionPooling(Part):
    """How regions become maps of ``size`` x ``size``: RoIAlign, or the paper's RoIPool ("pool"), which c4 can have."""

    op: Literal["align", "pool"] = "align"
    size: Count = 7
    sampling_ratio: Count = 2
    aligned: bool = False

    def make(self) -> Pooling:
        return Pooling(**self.model_dump())


class Detection(Part):
    """A box with a class for each object; config.model is the backbone, without its classifier.

    kind: "c4", regions pooled from one map and the network's last stage on each (appendix A; for VGG its two
        fully-connected layers); "fpn", a feature pyramid with two fully-connected layers.
    anchor_sizes: square roots of areas in pixels; with "c4" all on the one map, with "fpn" one for each level.
    anchor_ratios, anchor_style, anchors_fitted: as in ``detection.anchors.Anchors``.
    fpn_channels, fpn_hidden: of the pyramid, and of its fully-connected layers.
    context: the features of the whole photograph beside each region's (appendix B).
    background_boxes: as torchvision's weights have.
    frozen_stages: how many parts of the backbone are never changed: the stem, the first stage, ...
    freeze_norm: use the running statistics of batch normalisation in training, and change nothing of it (appendix A).
    use_difficult: train on the objects that VOC calls difficult as well. Crowds are never trained on.
    backbone_weights: classification weights that the backbone starts with: a file of PyTorch's, or the workdir of a run
        of this project. Read when a run starts, and never when it resumes.
    metric: "voc07" (eleven points), "voc" (area under the curve), or "coco" (needs pycocotools).
    test_scales, test_canonical: shorter sides for the protocol "multi_scale", and the side in pixels at which regions
        are best read.
    test_vote: least IoU of the boxes that vote in the protocol "refine".
    """

    name: Literal["detection"] = "detection"
    kind: Literal["c4", "fpn"] = "fpn"
    anchor_sizes: Annotated[tuple[Positive, ...], Field(min_length=1)] = (32.0, 64.0, 128.0, 256.0, 512.0)
    anchor_ratios: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.5, 1.0, 2.0)
    anchor_style: Literal["exact", "rounded", "legacy"] = "exact"
    anchors_fitted: bool = False
    fpn_channels: Count = 256
    fpn_hidden: Count = 1024
    pooling: RegionPooling = RegionPooling()
    rpn: ProposalNetwork = ProposalNetwork()
    box: BoxHead = BoxHead()
    context: bool = False
    background_boxes: bool = False
    frozen_stages: NonNegativeInt = 2
    freeze_norm: bool = True
    use_difficult: bool = False
    backbone_weights: str | None = None
    metric: Metric = "voc"
    test_scales: Annotated[tuple[Count, ...], Field(min_length=2)] = (200, 400, 600, 800, 1000)
    test_canonical: Positive = 224.0
    test_vote: Unit = 0.5

    data_kinds: ClassVar[tuple[str, ...]] = ("detection",)
    fine_tunes: ClassVar[bool] = False
    has_responses: ClassVar[bool] = False

    # Building.

    def network(self, create: Callable[[int], Model], num_classes: int) -> FasterRCNN:
        """The detector on the network that ``create`` makes for a number of classes. Raises UserError."""
        network: Any = create(0)
        if getattr(network, "drop_path", 0):
            raise UserError("config.model.drop_path is set, but a detector's backbone drops no paths; remove it")
        if self.kind == "fpn":
            if network.family != "resnet":
                raise UserError("config.task.kind 'fpn' needs a residual network; use 'c4'")
            if self.pooling.op == "pool":
                raise UserError("config.task.pooling.op 'pool' reads one map and 'fpn' has several; use 'align'")
            backbone: Any = FPN(network, self.fpn_channels, self.fpn_hidden, self.frozen_stages, self.freeze_norm)
            sizes: tuple[tuple[float, ...], ...] = tuple((float(size),) for size in self.anchor_sizes)
            if len(sizes) != len(backbone.strides):
                raise UserError(
                    f"config.task.anchor_sizes has {len(sizes)} sizes and the pyramid {len(backbone.strides)} levels; "
                    f"give one for each"
                )
        else:
            backbone = c4(network, self.frozen_stages, self.freeze_norm)
            sizes = (tuple(map(float, self.anchor_sizes)),)
        return FasterRCNN(
            backbone,
            num_classes,
            Anchors(sizes, tuple(map(float, self.anchor_ratios)), self.anchor_style, self.anchors_fitted),
            rpn_channels=self.rpn.channels,
            rpn=self.rpn.settings(),
            pooling=self.pooling.make(),
            box=self.box.settings(),
            context=self.context,
            background_boxes=self.background_boxes,
        )

    def make(
        self,
        model: FasterRCNN,
        dataset: Any,
        normalization: Normalization,
        transforms: Transforms,
        mesh: Mesh,
        eval_batch_size: int,
        title: str = "",
    ) -> "DetectionTask":
        """The task for a detector on a ``DetectionDataset``, evaluated on its evaluation split. Raises UserError."""
        if transforms != Transforms():
            raise UserError("config.transforms are for classification; photographs are mirrored by config.data.flip")
        freezes_norm = self.freeze_norm and model.backbone.network.has_batch_norm
        if self.backbone_weights is None and (self.frozen_stages or freezes_norm):
            raise UserError(
                "layers are frozen, and config.task.backbone_weights is not set, so that they would stay random; give "
                "weights, or set config.task.frozen_stages=0 and config.task.freeze_norm=False"
            )
        evaluate = self._evaluator([model], [normalization], dataset, dataset.evaluation_split, mesh, eval_batch_size)
        return DetectionTask(
            model,
            normalization,
            lambda variables: evaluate([variables]),
            self.use_difficult,
            self.metric,
            title or f"Faster R-CNN on {dataset.name}",
        )

    def without_data(self, model: FasterRCNN) -> "DetectionTask":
        """The task with no data to train or evaluate on: enough for ``init``."""
        return DetectionTask(model)

    def updates_statistics(self, model: FasterRCNN) -> bool:
        """Whether training changes batch statistics."""
        return not self.freeze_norm and model.backbone.network.has_batch_norm

    @property
    def starting_weights(self) -> str | None:
        """Where the backbone's come from; None: it starts from nothing."""
        return self.backbone_weights

    def load_torch(self, name: str, path: Path, model: FasterRCNN, overrides: Mapping[str, Any]) -> Variables:
        """Variables of a whole detector from torchvision's weights. Raises UserError."""
        return load_torch_detection(model, path)

    # Scoring and predicting.

    def score(
        self,
        members: Sequence[Member],
        dataset: Any,
        split: str,
        mesh: Mesh,
        batch_size: int,
        protocol: str = "single",
    ) -> Score:
        """The figures of an ensemble, by default of one, on a split of a ``DetectionDataset``.

        The protocol is one of ``PROTOCOLS``.
        """
        testing = self._testing(protocol)
        models, normalizations, variables = zip(*members, strict=True)
        found = self._evaluator(models, normalizations, dataset, split, mesh, batch_size, testing)(variables)
        percent = ", ".join(f"{name} {found.figures[name]:.2f} %" for name in _RECORDED[self.metric])
        figures = {"num_examples": len(found.found.indices), **found.figures, "overflow": found.found.overflow}
        summary = f"{percent} ({self.metric}), {figures['num_examples']} examples"
        return Score(figures | {"compilations": len(found.found.shapes)}, summary, found)

    def write_scores(self, path: Path, details: Scored, dataset: Any, split: str) -> None:
        """A CSV file with a line for each class, and its precision and recall drawn beside it."""
        write_class_table(path, dataset.class_names, details.classes, details.more)
        title = f"{dataset.name} {split}"
        plot_precision_recall(path.with_suffix(".png"), dataset.class_names, details.classes, title)

    def predict(
        self, member: Member, class_names: Sequence[str], paths: Sequence[Path], size: tuple[int, int]
    ) -> Iterator[Described]:
        """The detections in files, resized as in evaluation; ``size`` is the shorter side and the most of the longer.

        A file that cannot be decoded is named on stderr and skipped; raises UserError if none can.
        """
        for path, found in detections_in(*member, paths, *size):
            order = found.scores.argsort()[::-1]
            lines = [
                f"{100 * found.scores[i]:6.2f} %  {class_names[found.labels[i]]}  "
                f"({', '.join(f'{side:.0f}' for side in found.boxes[i])})"
                for i in order
            ]
            yield Described(path, lines or ["nothing"], partial(draw_detections, path, found, class_names))

    def _testing(self, protocol: str) -> Testing:
        if protocol not in PROTOCOLS:
            raise UserError(f"a detector has no protocol {protocol!r}; use {', '.join(PROTOCOLS)}")
        scales = tuple(sorted(self.test_scales)) if "multi_scale" in protocol else ()
        return Testing("refine" in protocol, self.test_vote, scales, self.test_canonical)

    def _evaluator(
        self,
        models: Sequence[FasterRCNN],
        normalizations: Sequence[Normalization],
        dataset: Any,
        split: str,
        mesh: Mesh,
        batch_size: int,
        testing: Testing = SINGLE,
    ) -> Callable[[Sequence[Variables]], Scored]:
        if self.metric == "coco" and importlib.util.find_spec("pycocotools") is None:
            raise UserError(  # Before hours of training, not after.
                "config.task.metric 'coco' needs pycocotools; pip install 'resnet_jax[detection]', or use 'voc'"
            )
        detect = make_detector(models, normalizations, dataset, split, mesh, batch_size, testing)
        return lambda variables: score(detect(variables), dataset, split, self.metric)


_RECORDED: dict[str, tuple[str, ...]] = {"voc07": ("mAP",), "voc": ("mAP",), "coco": ("mAP", "AP50", "AP75")}


@dataclasses.dataclass(frozen=True)
class DetectionTask:
    """A ``Task``. Batches are those of ``DetectionDataset.training_batches``. Metrics are the four losses.

    The figures of ``evaluate`` are in percent; "lost_ap" is 100 minus the mean average precision.
    """

    model: FasterRCNN
    normalization: Normalization | None = None
    evaluator: Callable[[Variables], Scored] | None = None
    use_difficult: bool = False
    metric: Metric = "voc"
    title: str = ""

    metrics: ClassVar[tuple[str, ...]] = ("objectness", "rpn_box", "classifier", "box")
    percentages: ClassVar[frozenset[str]] = frozenset()
    best: ClassVar[str] = "lost_ap"
    picture: ClassVar[str] = "average_precision.png"

    @property
    def drawn(self) -> tuple[str, ...]:
        return _RECORDED[self.metric][:2]

    @property
    def recorded(self) -> Mapping[str, str]:
        return MappingProxyType({name: name for name in _RECORDED[self.metric]})

    def init(self, key: jax.Array, image_shape: tuple[int, ...]) -> Variables:
        images, boxes = jnp.zeros((1, *image_shape), jnp.float32), jnp.zeros((1, 1, 4))
        variables: Any = self.model.init(key, images, boxes, jnp.ones((1, 2)), method="outputs")
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}  # VGG has none.

    def trained(self, image_shape: tuple[int, ...]) -> Any:
        shapes = jax.eval_shape(partial(self.init, image_shape=image_shape), jax.random.key(0))
        mask = trainable(self.model.backbone, shapes)
        return None if all(jax.tree.leaves(mask)) else mask

    def with_weights(self, variables: Variables, weights: Variables) -> Variables:
        """The variables with those of a classification network in the backbone. Raises UserError if they do not fit."""
        return with_weights(variables, weights)

    def prepare(self, key: jax.Array, batch: Batch) -> Batch:
        assert self.normalization is not None
        valid = batch["valid"] & ~batch["crowd"]
        if not self.use_difficult:
            valid &= ~batch["difficult"]
        kept = {name: batch[name] for name in ("image_hw", "boxes", "labels")}
        return {"image": on_canvas(self.normalization, batch["image"], batch["image_hw"]), **kept, "valid": valid}

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        losses, batch_stats = self._losses(self.model, variables, batch, key)
        return sum(losses.values(), jnp.float32(0)), (losses, batch_stats)

    def statistics(self, variables: Variables, batch: Batch, key: jax.Array) -> Any:
        # As in classification; those of a head are of the regions that are drawn.
        backbone: Any = self.model.backbone
        norm = partial(backbone.network.norm, momentum=0.0, group_size=None)
        forgetful = self.model.clone(backbone=backbone.clone(network=backbone.network.clone(norm=norm)))
        return self._losses(forgetful, variables, batch, key)[1]

    def evaluate(self, variables: Variables) -> dict[str, float]:
        assert self.evaluator is not None
        figures = self.evaluator(variables).figures
        return {"lost_ap": 100 - figures["mAP"], **figures}

    def _losses(self, model: FasterRCNN, variables: Variables, batch: Batch, key: jax.Array) -> Any:
        targets = Targets(batch["boxes"], batch["labels"], batch["valid"])
        return training_losses(model, variables, batch["image"], batch["image_hw"], targets, key)
