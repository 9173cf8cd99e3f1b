"""ImageNet localisation (appendix C): a box for each class that an image is said to show.

A proposal network with a score and a box of each class, and an R-CNN that looks at its regions one by one.
"""

from typing import Any, Literal, NamedTuple, TypeAlias

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.detection.anchors import Anchors
from resnet_jax.detection.backbones import frozen, trainable
from resnet_jax.detection.boxes import Weights, at_least, clip, decode, encode, iou
from resnet_jax.detection.checks import check_one_of
from resnet_jax.detection.roi import roi_align
from resnet_jax.detection.rpn import Proposals, RPNSettings, new_layer_init, propose, rpn_losses, smooth_l1
from resnet_jax.errors import UserError
from resnet_jax.kernels import PLAIN, Kernels
from resnet_jax.models.layers import Conv

LOCALISATION_RPN = RPNSettings(samples=8, straddle=None, test_post_nms=200)
"""Eight anchors of each image count, at most half of them positive; 200 proposals go to the R-CNN (appendix C)."""

Stage: TypeAlias = Literal["rpn", "rcnn"]
"""Which part is trained: the proposal network, or the R-CNN on its proposals."""


class RegionSettings(NamedTuple):
    """How the R-CNN is trained and read.

    size: pixels of the side that regions are warped to (appendix C: 224).
    samples: proposals of each image that count in the losses, all equally likely.
    positive: IoU with an object of the class from which a proposal is one; the others are not (arXiv 1311.2524, 2.3).
    weights: of the box coding; beta: of ``smooth_l1``. Fast R-CNN's, as appendix C does not give them.
    """

    size: int = 224
    samples: int = 1
    positive: float = 0.5
    weights: Weights = (10.0, 10.0, 5.0, 5.0)
    beta: float = 1.0


class Located(NamedTuple):
    """The surest box of each class that was asked for: boxes (B, L, 4) in the image, and scores (B, L), logits."""

    boxes: jax.Array
    scores: jax.Array


class PerClass(nn.Module):
    """A linear layer with ``outputs`` of its own for each of K classes; those of the classes asked for are computed.

    A thousand classes with a box at each of nine anchors have 36,000 outputs at every position.
    """

    num_classes: int
    outputs: int
    kernel_init: nn.initializers.Initializer = new_layer_init

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array) -> jax.Array:
        """Features (B, P, C) at P places, and L classes of each image, (B, L): (B, L, P, outputs) float32."""
        kernel = self.param("kernel", self.kernel_init, (self.num_classes, x.shape[-1], self.outputs), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes, self.outputs), jnp.float32)
        own = jnp.asarray(kernel, x.dtype)[labels]
        y = jnp.einsum("bpc,blco->blpo", x, own, preferred_element_type=jnp.float32)
        return y + jnp.asarray(bias)[labels][:, :, None]


class PerClassHead(nn.Module):
    """``RPNHead`` with a score and a box of each class for each anchor (appendix C)."""

    num_anchors: int
    channels: int
    num_classes: int
    dtype: jnp.dtype = jnp.float32
    kernels: Kernels = PLAIN

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A map (B, H, W, C) and classes (B, L) to logits (B, L, N) and deltas (B, L, N, 4), N = H * W * anchors.

        In float32, and in the order of the anchors.
        """
        conv = Conv(
            self.channels,
            3,
            use_bias=True,
            dtype=self.dtype,
            kernel_init=new_layer_init,
            kernels=self.kernels,
            name="conv",
        )
        hidden = nn.relu(conv(x)).reshape(len(x), -1, self.channels)
        scores = PerClass(self.num_classes, self.num_anchors, name="cls")(hidden, labels)
        deltas = PerClass(self.num_classes, 4 * self.num_anchors, name="box")(hidden, labels)
        return scores.reshape(*labels.shape, -1), deltas.reshape(*labels.shape, -1, 4)


class Localiser(nn.Module):
    """For an image and classes, the box of each.

    rpn_backbone: one of ``backbones``, whose maps the proposal network reads.
    num_classes: K.
    anchors: on as many maps as the backbone has.
    rpn_channels: of the 3x3 convolution.
    rpn: settings of the proposal network.
    backbone: None: the proposal network answers; or the R-CNN's own network, one of ``backbones`` with ``whole``.
    regions: settings of the R-CNN.
    """

    rpn_backbone: Any
    num_classes: int
    anchors: Anchors
    rpn_channels: int = 512
    rpn: RPNSettings = LOCALISATION_RPN
    backbone: Any = None
    regions: RegionSettings = RegionSettings()

    def frozen(self, stages: tuple[str, ...], norms: bool) -> "Localiser":
        """As of ``FasterRCNN``."""
        return frozen(self, stages, norms)

    def setup(self) -> None:
        self.rpn_head = PerClassHead(
            self.anchors.per_position,
            self.rpn_channels,
            self.num_classes,
            dtype=self.rpn_backbone.dtype,
            kernels=self.rpn_backbone.kernels,
        )
        if self.backbone is not None:
            self.box_score = PerClass(self.num_classes, 1)
            self.box_deltas = PerClass(self.num_classes, 4, nn.initializers.normal(0.001))

    def __call__(self, images: jax.Array, image_hw: jax.Array, labels: jax.Array, stage: Stage = "rpn") -> Located:
        """Of normalised images (B, H, W, 3) of ``image_hw`` (B, 2), and L classes of each, (B, L).

        The surest box of the proposal network, or of its proposals as the R-CNN scores and moves them.
        """
        check_one_of("stage", stage, Stage)
        if stage == "rcnn":
            proposals = self.propose(images, image_hw, labels)
            scores, deltas = self._region_outputs(images, proposals.boxes, labels)
            boxes = decode(deltas, proposals.boxes, self.regions.weights)
            scores = jnp.where(proposals.valid, scores, -jnp.inf)
        else:
            scores, deltas, anchors = self._anchor_outputs(images, labels)
            boxes = decode(deltas, anchors)
        return surest(boxes, scores, image_hw, self.rpn.min_size)

    def propose(self, images: jax.Array, image_hw: jax.Array, labels: jax.Array) -> Proposals:
        """Proposals of each class, (B, L, R, ...): suppressed, by falling score; no gradient flows back."""
        scores, deltas, anchors = self._anchor_outputs(images, labels)
        flat_scores, flat_deltas = (x.reshape(-1, *x.shape[2:]) for x in (scores, deltas))
        repeated = jnp.repeat(jnp.asarray(image_hw), labels.shape[1], axis=0)
        found = propose([flat_scores], [flat_deltas], [anchors], repeated, self.rpn)
        return Proposals(*(x.reshape(*labels.shape, *x.shape[1:]) for x in found))

    def outputs(self, images: jax.Array, labels: jax.Array, boxes: jax.Array) -> Any:
        """Every layer applied, to images, classes (B, L) and regions (B, L, R, 4).

        ``init(..., method="outputs")`` makes all variables without compiling the suppression.
        """
        first = self._anchor_outputs(images, labels)[:2]
        return first, None if self.backbone is None else self._region_outputs(images, boxes, labels)

    def losses(
        self,
        images: jax.Array,
        image_hw: jax.Array,
        labels: jax.Array,
        gt_boxes: jax.Array,
        gt_valid: jax.Array,
        stage: Stage = "rpn",
        train: bool = True,
    ) -> dict[str, jax.Array]:
        """ "objectness" and "rpn_box", or "classifier" and "box" of the R-CNN; of the one class that each image shows.

        labels: (B,); gt_boxes: (B, G, 4) and gt_valid: (B, G) bool, of that class. Needs an rng called "sample".
        """
        check_one_of("stage", stage, Stage)
        key = self.make_rng("sample")
        if stage == "rpn":
            scores, deltas, anchors = self._anchor_outputs(images, labels[:, None], train)
            objectness, box = rpn_losses(
                scores[:, 0], deltas[:, 0], anchors, image_hw, gt_boxes, gt_valid, self.rpn, key
            )
            return {"objectness": objectness, "rpn_box": box}
        found = self.propose(images, image_hw, labels[:, None])
        proposals = Proposals(*(lax.stop_gradient(x[:, 0]) for x in found))
        sample = sample_regions(proposals, gt_boxes, gt_valid, self.regions, key)
        scores, deltas = self._region_outputs(images, sample.boxes[:, None], labels[:, None], train)
        return region_losses(scores[:, 0], deltas[:, 0], sample, self.regions.beta)

    def _anchor_outputs(
        self, images: jax.Array, labels: jax.Array, train: bool = False
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Logits (B, L, N), deltas (B, L, N, 4) and the anchors (N, 4) of all maps."""
        maps = self.rpn_backbone(images, train)
        outputs = zip(*(self.rpn_head(x, labels) for x in maps), strict=True)
        scores, deltas = (jnp.concatenate(parts, axis=2) for parts in outputs)
        anchors = self.anchors.on(images.shape[1:3], [x.shape[1:3] for x in maps], self.rpn_backbone.strides)
        return scores, deltas, jnp.concatenate(anchors)

    def _region_outputs(
        self, images: jax.Array, boxes: jax.Array, labels: jax.Array, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Logits (B, L, R) and deltas (B, L, R, 4) of regions (B, L, R, 4), each for its own class of (B, L)."""
        if self.backbone is None:
            raise UserError("the localiser has no R-CNN; give it a backbone, in a config set task.rcnn")
        batch, classes, count = boxes.shape[:3]
        size = self.regions.size
        warped = roi_align(images, boxes.reshape(batch, -1, 4), 1.0, size, aligned=True)
        features = self.backbone.whole(warped.reshape(-1, size, size, 3), train).reshape(batch * classes, count, -1)
        own = labels.reshape(-1, 1)
        scores, deltas = self.box_score(features, own), self.box_deltas(features, own)
        return scores.reshape(batch, classes, count), deltas.reshape(batch, classes, count, 4)


def surest(boxes: jax.Array, scores: jax.Array, image_hw: jax.Array, min_size: float) -> Located:
    """Of boxes (B, L, N, 4) cut to their images the one of the highest score (B, L, N) that is not too small."""
    boxes = clip(boxes, jnp.asarray(image_hw)[:, None])
    scores = jnp.where(at_least(boxes, min_size), scores, -jnp.inf)
    best = jnp.argmax(scores, axis=2)[..., None]
    return Located(
        jnp.take_along_axis(boxes, best[..., None], axis=2)[:, :, 0],
        jnp.take_along_axis(scores, best, axis=2)[..., 0],
    )


class RegionSample(NamedTuple):
    """boxes (B, S, 4); mask (B, S), which slots are filled; positive (B, S), and for those deltas (B, S, 4)."""

    boxes: jax.Array
    mask: jax.Array
    positive: jax.Array
    deltas: jax.Array


def sample_regions(
    proposals: Proposals, gt_boxes: jax.Array, gt_valid: jax.Array, settings: RegionSettings, key: jax.Array
) -> RegionSample:
    """Draws ``settings.samples`` of the proposals (B, R, ...) of each image, and what is to be said of each.

    With one of many images a batch is centred on regions, not on images: hardly any two of it overlap.
    """

    def of_image(
        key: jax.Array, boxes: jax.Array, there: jax.Array, gt: jax.Array, gt_there: jax.Array
    ) -> RegionSample:
        drawn, index = lax.top_k(jnp.where(there, jax.random.uniform(key, there.shape), -1.0), settings.samples)
        chosen, mask = boxes[index], drawn >= 0
        overlaps = jnp.where(gt_there, iou(chosen, gt), -1.0)
        positive = mask & (overlaps.max(axis=1) >= settings.positive)
        # Where nothing is to be learned the target is the region itself, so that no infinity is multiplied by 0.
        target = jnp.where(positive[:, None], gt[overlaps.argmax(axis=1)], chosen)
        return RegionSample(chosen, mask, positive, encode(target, chosen, settings.weights))

    keys = jax.random.split(key, len(proposals.boxes))
    return jax.vmap(of_image)(keys, proposals.boxes, proposals.valid, jnp.asarray(gt_boxes, jnp.float32), gt_valid)


def region_losses(scores: jax.Array, deltas: jax.Array, sample: RegionSample, beta: float) -> dict[str, jax.Array]:
    """ "classifier": the mean binary cross-entropy of logits (B, S); "box": smooth L1 of the positives' deltas
    (B, S, 4), over the sample's size."""
    count = jnp.maximum(sample.mask.sum(), 1)
    entropy = nn.softplus(scores) - scores * sample.positive
    distance = smooth_l1(deltas - sample.deltas, beta).sum(axis=-1)
    return {
        "classifier": jnp.where(sample.mask, entropy, 0).sum() / count,
        "box": jnp.where(sample.positive, distance, 0).sum() / count,
    }


def trained_part(model: Localiser, variables: Any, stage: Stage) -> Any:
    """A tree like ``variables["params"]`` of bools: whether training this part changes a parameter."""
    check_one_of("stage", stage, Stage)
    free = flax.traverse_util.flatten_dict(trainable(model.rpn_backbone, variables))
    of_rpn = ("rpn_head", "rpn_backbone")
    return flax.traverse_util.unflatten_dict(
        {place: moves and (place[0] in of_rpn) == (stage == "rpn") for place, moves in free.items()}
    )
