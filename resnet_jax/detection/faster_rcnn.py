"""Faster R-CNN (Ren et al., arXiv 1506.01497), put together from parts: section 4.3 and appendices A and B.

Classes are 0 to K - 1 in ground truth and detections; inside, the first of K + 1 scores is the background's. Images may
lie in the upper left corner of larger arrays, whose rest is zeros; ``image_hw`` says how large they are. All shapes are
static: where there are fewer boxes than slots, masks say which count.
"""

from typing import Any, Literal, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.detection.anchors import Anchors
from resnet_jax.detection.backbones import frozen
from resnet_jax.detection.boxes import Weights, at_least, clip, decode, encode, iou
from resnet_jax.detection.checks import check_one_of
from resnet_jax.detection.nms import box_vote, nms
from resnet_jax.detection.roi import multilevel_roi_align, roi_align, roi_pool
from resnet_jax.detection.rpn import (
    Proposals,
    RPNHead,
    RPNSettings,
    new_layer_init,
    propose,
    rpn_losses,
    smooth_l1,
)
from resnet_jax.detection.sampling import POSITIVE, match, sample_fixed
from resnet_jax.errors import UserError

Trains: TypeAlias = Literal["joint", "rpn", "detector"]
"""Which part is trained: both together, the proposal network, or the detector on the proposals of the former."""

PoolingOp: TypeAlias = Literal["align", "pool"]


class BoxSettings(NamedTuple):
    """How the second stage is trained and read. The defaults are those of detectron2 and torchvision, but for beta.

    positive: IoU with a ground-truth box from which a proposal is an example of its class.
    negative: proposals with an IoU of at least the first and below the second are background.
    samples: proposals of each image that count in the losses.
    fraction: of positive ones among these, at most.
    weights: of the box coding.
    beta: of ``smooth_l1``: 1 in Fast R-CNN, 1 / 9 in torchvision, 0 in detectron2.
    min_score: detections have a larger probability.
    candidates: boxes with the largest probabilities of an image, over all classes, that the suppression is given.
    nms: its threshold; classes do not see each other.
    vote: None; or the IoU from which suppressed boxes take part in box voting (appendix B; 0.5 in arXiv 1505.01749).
    detections: of an image at most.
    min_size: narrower or lower boxes, in pixels, are no detections.
    """

    positive: float = 0.5
    negative: tuple[float, float] = (0.0, 0.5)
    samples: int = 512
    fraction: float = 0.25
    weights: Weights = (10.0, 10.0, 5.0, 5.0)
    beta: float = 1.0
    min_score: float = 0.05
    candidates: int = 2000
    nms: float = 0.5
    vote: float | None = None
    detections: int = 100
    min_size: float = 1e-2


class Pooling(NamedTuple):
    """How regions are pooled: ``roi_align``, on several maps ``multilevel_roi_align``, or ``roi_pool``, on one map."""

    op: PoolingOp = "align"
    size: int = 7
    sampling_ratio: int = 2
    aligned: bool = False

    def __call__(self, maps: tuple[jax.Array, ...], strides: tuple[int, ...], boxes: jax.Array) -> jax.Array:
        """Maps (B, H_i, W_i, C) and boxes (B, R, 4) within the image to (B, R, size, size, C). Raises UserError."""
        check_one_of("op", self.op, PoolingOp)
        if self.op == "pool":
            if len(maps) > 1:
                raise UserError("RoIPool reads one map; a pyramid needs RoIAlign")
            return roi_pool(maps[0], boxes, 1 / strides[0], self.size, inside=True)
        if len(maps) > 1:
            return multilevel_roi_align(maps, boxes, strides, self.size, self.sampling_ratio, self.aligned)
        return roi_align(maps[0], boxes, 1 / strides[0], self.size, self.sampling_ratio, self.aligned)


class Predictions(NamedTuple):
    """What the second stage says of each proposal.

    boxes: (B, R, 4), the proposals.
    valid: (B, R) bool.
    probabilities: (B, R, K + 1), the background's first.
    deltas: (B, R, K, 4), for ``decode``, for each class.
    """

    boxes: jax.Array
    valid: jax.Array
    probabilities: jax.Array
    deltas: jax.Array


class Detections(NamedTuple):
    """boxes (B, D, 4) in the image, scores (B, D) that fall, labels (B, D) of 0 to K - 1, valid (B, D) bool.

    overflow: (B,) int32, how many boxes above ``min_score`` the suppression was not given because there were more than
    ``candidates``; their scores are below those of all that it was given.
    """

    boxes: jax.Array
    scores: jax.Array
    labels: jax.Array
    valid: jax.Array
    overflow: jax.Array


class Targets(NamedTuple):
    """The ground truth of a batch: boxes (B, G, 4) in pixels, labels (B, G) of 0 to K - 1, valid (B, G) bool."""

    boxes: jax.Array
    labels: jax.Array
    valid: jax.Array


def check_targets(images: jax.Array, image_hw: jax.Array, targets: Targets) -> None:
    """Raises UserError unless the shapes of a batch belong together: (B, H, W, 3), (B, 2), and those of ``Targets``."""
    if not isinstance(targets, Targets):
        raise UserError(f"targets are a {type(targets).__name__}; give a faster_rcnn.Targets(boxes, labels, valid)")
    given = {"images": images, "image_hw": image_hw, **targets._asdict()}
    shapes = {name: jnp.shape(value) for name, value in given.items()}
    sizes = {"B": shapes["images"][:1], "G": shapes["labels"][1:2], "2": (2,), "3": (3,), "4": (4,)}
    wanted = {"images": "B H W 3", "image_hw": "B 2", "labels": "B G", "boxes": "B G 4", "valid": "B G"}
    for name, axes in wanted.items():
        fits = len(shapes[name]) == len(axes.split()) and all(
            sizes.get(axis, (size,)) == (size,) for axis, size in zip(axes.split(), shapes[name], strict=True)
        )
        if not fits:
            raise UserError(
                f"{name} has shape {shapes[name]}; it must be ({', '.join(axes.split())}) where images have shape "
                f"{shapes['images']} and labels, (B, G), {shapes['labels']}"
            )


class FasterRCNN(nn.Module):
    """The detector.

    backbone: one of ``backbones``.
    num_classes: K, without the background.
    anchors: on as many maps as the backbone has.
    rpn_channels: of the proposal network's 3x3 convolution.
    rpn: settings of the proposal network.
    pooling: of regions.
    box: settings of the second stage.
    context: add the features of the whole image, pooled as one region, to those of each (appendix B, global context).
    background_boxes: predict boxes for the background, too, as torchvision's weights do; nothing reads them.
    rpn_backbone: None: the proposal network reads the maps of ``backbone``; or a backbone of its own, as in the first
        two steps of alternating training (section 3.2 there).
    """

    backbone: Any
    num_classes: int
    anchors: Anchors
    rpn_channels: int = 256
    rpn: RPNSettings = RPNSettings()
    pooling: Pooling = Pooling()
    box: BoxSettings = BoxSettings()
    context: bool = False
    background_boxes: bool = False
    rpn_backbone: Any = None

    def setup(self) -> None:
        self.rpn_head = RPNHead(
            self.anchors.per_position,
            self.rpn_channels,
            dtype=self.backbone.dtype,
            kernels=self.backbone.kernels,
        )
        boxes = self.num_classes + (1 if self.background_boxes else 0)
        self.box_score = nn.Dense(self.num_classes + 1, kernel_init=new_layer_init)
        self.box_deltas = nn.Dense(4 * boxes, kernel_init=nn.initializers.normal(0.001))

    def frozen(self, stages: tuple[str, ...], norms: bool) -> "FasterRCNN":
        """The same detector with these stages of its networks frozen, as ``models.model.Model`` says."""
        return frozen(self, stages, norms)

    # Inference.

    def __call__(self, images: jax.Array, image_hw: jax.Array) -> Detections:
        """Detections of normalised images (B, H, W, 3), whose heights and widths are ``image_hw`` (B, 2)."""
        maps = self.features(images)
        proposals = self.propose(self.rpn_maps(images, maps), images.shape[1:3], image_hw)
        return detect(self.predict(maps, proposals, image_hw), image_hw, self.box)

    def outputs(self, images: jax.Array, boxes: jax.Array, image_hw: jax.Array) -> Any:
        """Every layer applied: ((scores, deltas) of the anchors, (logits, deltas) of ``boxes`` (B, R, 4)).

        ``init(..., method="outputs")`` makes all variables without compiling the suppression.
        """
        maps = self.features(images)
        return self.rpn_outputs(self.rpn_maps(images, maps)), self.head(maps, boxes, image_hw)

    def features(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, ...]:
        """The backbone's maps."""
        return self.backbone(images, train)

    def rpn_maps(
        self, images: jax.Array, maps: tuple[jax.Array, ...] | None = None, train: bool = False
    ) -> tuple[jax.Array, ...]:
        """The maps that the proposal network reads: ``maps``, the ``features``, or those of its own backbone."""
        if self.rpn_backbone is not None:
            return self.rpn_backbone(images, train)
        return self.features(images, train) if maps is None else maps

    def rpn_outputs(self, maps: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        """Of each map logits (B, N_i) and deltas (B, N_i, 4), float32."""
        scores, deltas = zip(*(self.rpn_head(x) for x in maps), strict=True)
        return scores, deltas

    def anchor_boxes(self, maps: tuple[jax.Array, ...], padded_hw: tuple[int, ...]) -> tuple[jax.Array, ...]:
        """Of each map the anchors (N_i, 4), for image arrays of ``padded_hw``."""
        return self.anchors.on(padded_hw, [x.shape[1:3] for x in maps], self.backbone.strides)

    def propose(
        self, maps: tuple[jax.Array, ...], padded_hw: tuple[int, ...], image_hw: jax.Array, train: bool = False
    ) -> Proposals:
        """Proposals out of ``rpn_maps``. Trained and read with other numbers of them (``RPNSettings``)."""
        scores, deltas = self.rpn_outputs(maps)
        return propose(scores, deltas, self.anchor_boxes(maps, padded_hw), image_hw, self.rpn, train)

    def box_features(self, maps: tuple[jax.Array, ...], boxes: jax.Array, train: bool = False) -> jax.Array:
        """Features (B, R, D), float32, of regions (B, R, 4) of ``features``: pooling and the layers after it."""
        levels = self.backbone.roi_levels
        boxes = lax.stop_gradient(boxes)
        pooled = self.pooling(maps[:levels], self.backbone.strides[:levels], boxes)
        # Joined as (B * R, ...), which keeps the division of the batch among devices.
        features = self.backbone.head(pooled.reshape(-1, *pooled.shape[2:]), train)
        return features.reshape(*boxes.shape[:2], -1)

    def context_features(self, maps: tuple[jax.Array, ...], image_hw: jax.Array) -> jax.Array:
        """Those of the whole image (B, 1, D)."""
        return self.box_features(maps, _whole(image_hw))

    def classify(self, features: jax.Array, context: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Of ``box_features`` (B, R, D) and, where the detector has context, ``context_features`` (B, 1, D).

        Logits (B, R, K + 1), the background's first, and deltas (B, R, K, 4), or K + 1 with ``background_boxes``.
        """
        if context is not None:
            features = jnp.concatenate([features, jnp.broadcast_to(context, features.shape)], axis=-1)
        deltas = self.box_deltas(features)
        return self.box_score(features), deltas.reshape(*deltas.shape[:2], -1, 4)

    def head(
        self, maps: tuple[jax.Array, ...], boxes: jax.Array, image_hw: jax.Array, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """The second stage of regions (B, R, 4): as ``classify``."""
        if not self.context:
            return self.classify(self.box_features(maps, boxes, train))
        # In one batch: where batch normalisation is trained, its averages are then those of all that it normalises.
        features = self.box_features(maps, jnp.concatenate([boxes, _whole(image_hw)], axis=1), train)
        return self.classify(features[:, :-1], features[:, -1:])

    def predict(self, maps: tuple[jax.Array, ...], proposals: Proposals, image_hw: jax.Array) -> Predictions:
        """What the second stage says of proposals."""
        return self.predictions(proposals, *self.head(maps, proposals.boxes, image_hw))

    def predictions(self, proposals: Proposals, logits: jax.Array, deltas: jax.Array) -> Predictions:
        """``Predictions`` out of what ``classify`` gives for proposals."""
        return Predictions(proposals.boxes, proposals.valid, nn.softmax(logits), deltas[:, :, -self.num_classes :])

    # Training.

    def losses(
        self,
        images: jax.Array,
        image_hw: jax.Array,
        targets: Targets,
        train: bool = True,
        trains: Trains = "joint",
    ) -> dict[str, jax.Array]:
        """The four losses of approximate joint training, by name; what is minimised is their sum.

        "objectness" and "rpn_box", the proposal network's; "classifier" and "box", the detector's. Either pair may be
        trained alone (``trains``), the detector on the proposals of the network as it is. Needs an rng called "sample",
        and "dropout" for VGG; where batch normalisation is not frozen, "batch_stats" must be mutable.
        ``training.training_losses`` also keeps frozen parameters from getting gradients. Raises UserError where shapes
        are not those of ``Targets`` for these images.
        """
        check_one_of("trains", trains, Trains)
        check_targets(images, image_hw, targets)
        padded_hw = images.shape[1:3]
        if trains == "rpn":
            return self.rpn_losses(self.rpn_maps(images, train=train), padded_hw, image_hw, targets)
        maps = self.features(images, train)
        rpn_maps = self.rpn_maps(images, maps, train and trains == "joint")
        first = self.rpn_losses(rpn_maps, padded_hw, image_hw, targets) if trains == "joint" else {}
        proposals = self.propose(rpn_maps, padded_hw, image_hw, train=True)
        return first | self.box_losses(maps, proposals, image_hw, targets, train)

    def rpn_losses(
        self, maps: tuple[jax.Array, ...], padded_hw: tuple[int, ...], image_hw: jax.Array, targets: Targets
    ) -> dict[str, jax.Array]:
        """ "objectness" and "rpn_box" alone."""
        scores, deltas = (jnp.concatenate(x, axis=1) for x in self.rpn_outputs(maps))
        anchors = jnp.concatenate(self.anchor_boxes(maps, padded_hw))
        key = self.make_rng("sample")
        objectness, box = rpn_losses(scores, deltas, anchors, image_hw, targets.boxes, targets.valid, self.rpn, key)
        return {"objectness": objectness, "rpn_box": box}

    def box_losses(
        self,
        maps: tuple[jax.Array, ...],
        proposals: Proposals,
        image_hw: jax.Array,
        targets: Targets,
        train: bool = True,
    ) -> dict[str, jax.Array]:
        """ "classifier" and "box" alone, for any proposals; the ground truth is added to them."""
        sample = sample_boxes(proposals, targets, self.box, self.make_rng("sample"))
        logits, deltas = self.head(maps, sample.boxes, image_hw, train)
        return box_losses(logits, deltas[:, :, -self.num_classes :], sample, self.box.beta)


def _whole(image_hw: jax.Array) -> jax.Array:
    """Boxes (B, 1, 4) of whole images of (B, 2) heights and widths."""
    hw = jnp.asarray(image_hw, jnp.float32)
    return jnp.concatenate([jnp.zeros_like(hw), hw[:, ::-1]], axis=1)[:, None]


class BoxSample(NamedTuple):
    """The proposals of each image that count in the losses.

    boxes (B, S, 4); mask (B, S), which slots are filled; classes (B, S), 0 for background, 1 to K; deltas (B, S, 4),
    what is to be predicted where it is not background.
    """

    boxes: jax.Array
    mask: jax.Array
    classes: jax.Array
    deltas: jax.Array


def sample_boxes(proposals: Proposals, targets: Targets, settings: BoxSettings, key: jax.Array) -> BoxSample:
    """Draws from the proposals and the ground truth of each image what its second stage is trained with."""

    def of_image(
        key: jax.Array, boxes: jax.Array, valid: jax.Array, gt: jax.Array, gt_labels: jax.Array, gt_valid: jax.Array
    ) -> BoxSample:
        # The ground truth comes last, so that its padding does not change the draws for the proposals.
        boxes = jnp.concatenate([boxes, jnp.where(gt_valid[:, None], jnp.asarray(gt, jnp.float32), 0)])
        valid = jnp.concatenate([valid, gt_valid])
        matched, labels = match(iou(boxes, gt), gt_valid, settings.positive, settings.negative)
        index, mask = sample_fixed(jnp.where(valid, labels, -1), settings.samples, settings.fraction, key)
        positive = mask & (labels[index] == POSITIVE)
        chosen = boxes[index]
        if gt.shape[0]:
            target, classes = gt[matched[index]], gt_labels[matched[index]] + 1
        else:
            target, classes = chosen, jnp.zeros(len(index), jnp.int32)
        deltas = encode(jnp.where(positive[:, None], target, chosen), chosen, settings.weights)
        return BoxSample(chosen, mask, jnp.where(positive, classes, 0).astype(jnp.int32), deltas)

    keys = jax.random.split(key, len(proposals.boxes))
    return lax.stop_gradient(jax.vmap(of_image)(keys, proposals.boxes, proposals.valid, *targets))


def box_losses(logits: jax.Array, deltas: jax.Array, sample: BoxSample, beta: float) -> dict[str, jax.Array]:
    """ "classifier": the mean cross-entropy of the sample; "box": smooth L1 of its positives, over the sample's size.

    logits (B, S, K + 1), deltas (B, S, K, 4).
    """
    count = jnp.maximum(sample.mask.sum(), 1)
    entropy = -jnp.take_along_axis(nn.log_softmax(logits), sample.classes[..., None], axis=-1)[..., 0]
    own = jnp.maximum(sample.classes - 1, 0)[..., None, None]
    predicted = jnp.take_along_axis(deltas, own, axis=2)[:, :, 0]
    distance = smooth_l1(predicted - sample.deltas, beta).sum(axis=-1)
    return {
        "classifier": jnp.where(sample.mask, entropy, 0).sum() / count,
        "box": jnp.where(sample.mask & (sample.classes > 0), distance, 0).sum() / count,
    }


def detect(predictions: Predictions, image_hw: jax.Array, settings: BoxSettings) -> Detections:
    """A box for each proposal and class above ``min_score``; suppression, class by class; the best of all classes."""

    def of_image(boxes: jax.Array, valid: jax.Array, scores: jax.Array, deltas: jax.Array, hw: jax.Array) -> Detections:
        classes = deltas.shape[1]
        flat = jnp.where(valid[:, None], scores[:, 1:], -1.0).reshape(-1)
        count = min(settings.candidates, flat.shape[0])
        top, index = lax.top_k(flat, count)
        proposal, label = index // classes, index % classes
        candidates = clip(decode(deltas[proposal, label], boxes[proposal], settings.weights), hw)
        there = (top > settings.min_score) & at_least(candidates, settings.min_size)
        kept, found = nms(candidates, top, settings.nms, settings.detections, there, label)
        result = candidates[kept]
        if settings.vote is not None:
            result = box_vote(result, candidates, top, settings.vote, there, label[kept], label)
        overflow = jnp.sum(flat > settings.min_score) - jnp.sum(top > settings.min_score)
        return Detections(
            jnp.where(found[:, None], result, 0),
            jnp.where(found, top[kept], 0),
            jnp.where(found, label[kept], 0).astype(jnp.int32),
            found,
            overflow.astype(jnp.int32),
        )

    return jax.vmap(of_image)(*predictions, jnp.asarray(image_hw, jnp.float32))
