"""Detection: Faster R-CNN on a network of the zoo, trained jointly or in steps, scored by average precision (4.3)."""

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

from resnet_jax.data.decode.boxes import Look
from resnet_jax.data.normalization import Normalization
from resnet_jax.data.transforms import Transforms
from resnet_jax.detection.anchors import Anchors
from resnet_jax.detection.backbones import FPN, c4, forgetful, freezes, networks
from resnet_jax.detection.checks import check_backbone
from resnet_jax.detection.faster_rcnn import FasterRCNN, Trains
from resnet_jax.detection.targets import Targets
from resnet_jax.detection.training import trained, training_losses
from resnet_jax.errors import UserError
from resnet_jax.evaluation.detection.detector import (
    PROPOSALS,
    SINGLE,
    Testing,
    detect_batch,
    make_detector,
    on_canvas,
)
from resnet_jax.evaluation.detection.predict import detections_in
from resnet_jax.evaluation.detection.report import draw_detections, plot_precision_recall, write_class_table
from resnet_jax.evaluation.detection.scores import Metric, Scored, recalled, score
from resnet_jax.interop.torch_detection import load_torch_detection
from resnet_jax.models.model import Model
from resnet_jax.parts import Count, Part
from resnet_jax.tasks.detection_stages import BoxHead, Positive, ProposalNetwork, RegionPooling, Unit
from resnet_jax.tasks.detection_start import starting_variables
from resnet_jax.tasks.task import Batch, Described, Member, Score, Variables

PROTOCOLS = ("single", "refine", "multi_scale", "refine+multi_scale", "proposals")


class Detection(Part):
    """A box with a class for each object; config.model is the backbone, without its classifier.

    kind: "c4", regions pooled from one map and the network's last stage on each (appendix A; for VGG its two
        fully-connected layers); "fpn", a feature pyramid with two fully-connected layers.
    anchor_sizes: square roots of areas in pixels; with "c4" all on the one map, with "fpn" one for each level.
    anchor_ratios, anchor_style, anchors_fitted: as in ``detection.anchors.Anchors``.
    fpn_channels, fpn_hidden: of the pyramid, and of its fully-connected layers.
    context: the features of the whole photograph beside each region's (appendix B).
    background_boxes: as torchvision's weights have.
    use_difficult: train on the objects that VOC calls difficult as well. Crowds are never trained on.
    trains: "joint", both stages together; or one of them, for alternating training (Ren et al., section 3.2): "rpn",
        the proposal network, whose figure is the recall of its proposals; "detector", on the proposals of that network
        as it was trained before.
    shared: whether both stages read the maps of one backbone; if not, the proposal network has one of its own.
    metric: "voc07" (eleven points), "voc" (area under the curve), "coco" (needs pycocotools), or "imagenet" (of its
        detection task: as "voc", but small objects need less overlap).
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
    use_difficult: bool = False
    trains: Trains = "joint"
    shared: bool = True
    metric: Metric = "voc"
    test_scales: Annotated[tuple[Count, ...], Field(min_length=2)] = (200, 400, 600, 800, 1000)
    test_canonical: Positive = 224.0
    test_vote: Unit = 0.5

    data_kinds: ClassVar[tuple[str, ...]] = ("detection",)
    has_responses: ClassVar[bool] = False
    draws_scores: ClassVar[bool] = True
    any_size: ClassVar[bool] = True
    keys_of_network: ClassVar[tuple[str, ...]] = (
        "kind",
        "anchor",
        "fpn_",
        "pooling.",
        "box.weights",
        "context",
        "background_boxes",
        "shared",
    )

    # Building.

    def network(self, create: Callable[[int], Model], num_classes: int) -> FasterRCNN:
        """The detector on the network that ``create`` makes for a number of classes. Raises UserError."""
        network: Any = create(0)
        for field in ("drop_path", "dropout"):
            if getattr(network, field, 0):
                raise UserError(f"config.model.{field} is set, but a detector's backbone drops nothing; remove it")
        backbone: Any = self._backbone(network)
        if self.kind == "fpn":
            sizes: tuple[tuple[float, ...], ...] = tuple((float(size),) for size in self.anchor_sizes)
            if len(sizes) != len(backbone.strides):
                raise UserError(
                    f"config.task.anchor_sizes has {len(sizes)} sizes and the pyramid {len(backbone.strides)} levels; "
                    f"give one for each"
                )
        else:
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
            # Of another module: the same one twice would have one set of parameters.
            rpn_backbone=None if self.shared else self._backbone(create(0)),
        )

    def _backbone(self, network: Any) -> Any:
        if self.kind == "c4":
            return c4(network)
        check_backbone(network, "resnet")
        if self.pooling.op == "pool":
            raise UserError("config.task.pooling.op 'pool' reads one map and 'fpn' has several; use 'align'")
        return FPN(network, self.fpn_channels, self.fpn_hidden)

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
        testing = PROPOSALS if self.trains == "rpn" else SINGLE
        evaluate = self._evaluator(
            [model], [normalization], dataset, dataset.evaluation_split, mesh, eval_batch_size, testing
        )
        return DetectionTask(
            model,
            normalization,
            lambda variables: evaluate([variables]),
            self.use_difficult,
            self.metric,
            title or f"Faster R-CNN on {dataset.name}",
            self.trains,
        )

    def without_data(self, model: FasterRCNN) -> "DetectionTask":
        """The task with no data to train or evaluate on: enough for ``init``."""
        return DetectionTask(model, metric=self.metric, trains=self.trains)

    def networks(self, model: FasterRCNN) -> dict[tuple[str, ...], Model]:
        """Those of its backbones."""
        return networks(model)

    def updates_statistics(self, model: FasterRCNN) -> bool:
        """Whether training changes batch statistics."""
        return model.backbone.network.has_batch_norm

    def needs_weights(self, model: FasterRCNN) -> bool:
        """Whether a part is frozen, or another's proposals are trained on, which would be random."""
        return freezes(model) or self.trains == "detector"

    def starting(
        self, model: FasterRCNN, weights: Variables, keep_head: bool, image_shape: tuple[int, int, int]
    ) -> Variables:
        """The weights of a classification network in the backbones, or those of a detector. Raises UserError.

        The head is the two last layers. A proposal network with a backbone of its own is left out where the two are to
        share one: the new one is trained on the maps of the detector.
        """
        template = jax.eval_shape(lambda: self.without_data(model).init(jax.random.key(0), image_shape))
        return starting_variables(template, weights, keep_head, self.shared)

    def load_torch(
        self, name: str, path: Path, model: FasterRCNN, overrides: Mapping[str, Any], channels: int = 3
    ) -> Variables:
        """Variables of a whole detector from torchvision's weights. Raises UserError."""
        return load_torch_detection(model, path)

    def save_torch(self, path: Path, model: FasterRCNN, variables: Mapping[str, Any]) -> None:
        """Raises UserError: detectors are read from PyTorch weights and not written as such."""
        raise UserError("a detector cannot be written as PyTorch weights; keep its workdir")

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
        if protocol != "proposals":
            self._check_has_classes("only proposals can be scored; use --protocol=proposals")
        testing = self._testing(protocol)
        models, normalizations, variables = zip(*members, strict=True)
        found = self._evaluator(models, normalizations, dataset, split, mesh, batch_size, testing)(variables)
        shown = ("recall",) if testing.proposals else _RECORDED[self.metric]
        percent = ", ".join(f"{name} {found.figures[name]:.2f} %" for name in shown)
        figures = {"num_examples": len(found.found.indices), **found.figures, "overflow": found.found.overflow}
        measured = "100 proposals" if testing.proposals else self.metric
        summary = f"{percent} ({measured}), {figures['num_examples']} examples"
        return Score(figures | {"compilations": len(found.found.shapes)}, summary, found)

    def write_scores(self, path: Path, details: Scored, dataset: Any, split: str) -> None:
        """A CSV file with a line for each class, and its precision and recall drawn beside it.

        Raises UserError for proposals, which have no class.
        """
        if not details.classes:
            raise UserError("--scores_csv is of classes, which --protocol=proposals does not tell apart; leave it out")
        write_class_table(path, dataset.class_names, details.classes, details.more)
        title = f"{dataset.name} {split}"
        plot_precision_recall(path.with_suffix(".png"), dataset.class_names, details.classes, title)

    def predict(
        self, member: Member, class_names: Sequence[str], paths: Sequence[Path], look: Look
    ) -> Iterator[Described]:
        """The detections in files, which are seen whole.

        A file that cannot be decoded is named on stderr and skipped. Raises UserError if none can, or for a run that
        trained the proposal network alone.
        """
        self._check_has_classes("its classes are untrained; use a run of a detector, such as the next step's")
        model, normalize, variables = member

        def find(variables: Any, batch: dict[str, jax.Array]) -> Any:
            return detect_batch([model], [normalize], [variables], [batch], SINGLE)

        stride = max(model.backbone.strides[: model.backbone.roi_levels])
        for path, found in detections_in(find, variables, stride, paths, look):
            order = found.scores.argsort()[::-1]
            lines = [
                f"{100 * found.scores[i]:6.2f} %  {class_names[found.labels[i]]}  "
                f"({', '.join(f'{side:.0f}' for side in found.boxes[i])})"
                for i in order
            ]
            yield Described(path, lines or ["nothing"], partial(draw_detections, path, found, class_names))

    def _check_has_classes(self, consequence: str) -> None:
        if self.trains == "rpn":
            raise UserError(f"config.task.trains is 'rpn', so that {consequence}")

    def _testing(self, protocol: str) -> Testing:
        if protocol not in PROTOCOLS:
            raise UserError(f"a detector has no protocol {protocol!r}; use {', '.join(PROTOCOLS)}")
        if protocol == "proposals":
            return PROPOSALS
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
                "config.task.metric 'coco' needs pycocotools; pip install pycocotools, or use 'voc'"
            )
        detect = make_detector(models, normalizations, dataset, split, mesh, batch_size, testing)
        if testing.proposals:
            return lambda variables: recalled(detect(variables), dataset, split)
        return lambda variables: score(detect(variables), dataset, split, self.metric)


_RECORDED: dict[str, tuple[str, ...]] = {
    "voc07": ("mAP",),
    "voc": ("mAP",),
    "coco": ("mAP", "AP50", "AP75"),
    "imagenet": ("mAP",),
}


@dataclasses.dataclass(frozen=True)
class DetectionTask:
    """A ``Task``. Batches are those of ``DetectionDataset.training_batches``. Metrics are the losses, of four.

    The figures of ``evaluate`` are in percent; "lost_ap" is 100 minus the mean average precision, and "lost_recall" 100
    minus the recall.
    """

    model: FasterRCNN
    normalization: Normalization | None = None
    evaluator: Callable[[Variables], Scored] | None = None
    use_difficult: bool = False
    metric: Metric = "voc"
    title: str = ""
    trains: Trains = "joint"

    percentages: ClassVar[frozenset[str]] = frozenset()

    @property
    def metrics(self) -> tuple[str, ...]:
        rpn, detector = ("objectness", "rpn_box"), ("classifier", "box")
        return {"joint": rpn + detector, "rpn": rpn, "detector": detector}[self.trains]

    @property
    def best(self) -> str:
        return "lost_recall" if self.trains == "rpn" else "lost_ap"

    @property
    def drawn(self) -> tuple[str, ...]:
        return ("recall",) if self.trains == "rpn" else _RECORDED[self.metric][:2]

    @property
    def picture(self) -> str:
        return "recall.png" if self.trains == "rpn" else "average_precision.png"

    @property
    def recorded(self) -> Mapping[str, str]:
        names = ("recall",) if self.trains == "rpn" else _RECORDED[self.metric]
        return MappingProxyType({name: name for name in names})

    def init(self, key: jax.Array, image_shape: tuple[int, ...]) -> Variables:
        images, boxes = jnp.zeros((1, *image_shape), jnp.float32), jnp.zeros((1, 1, 4))
        variables: Any = self.model.init(key, images, boxes, jnp.ones((1, 2)), method="outputs")
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}  # VGG has none.

    def trained(self, image_shape: tuple[int, ...]) -> Any:
        shapes = jax.eval_shape(partial(self.init, image_shape=image_shape), jax.random.key(0))
        mask = trained(self.model, shapes, self.trains)
        return None if all(jax.tree.leaves(mask)) else mask

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
        return self._losses(forgetful(self.model), variables, batch, key)[1]

    def evaluate(self, variables: Variables) -> dict[str, float]:
        assert self.evaluator is not None
        figures = self.evaluator(variables).figures
        return {self.best: 100 - figures["recall" if self.trains == "rpn" else "mAP"], **figures}

    def _losses(self, model: FasterRCNN, variables: Variables, batch: Batch, key: jax.Array) -> Any:
        targets = Targets(batch["boxes"], batch["labels"], batch["valid"])
        return training_losses(model, variables, batch["image"], batch["image_hw"], targets, key, self.trains)
