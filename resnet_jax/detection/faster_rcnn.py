"""Faster R-CNN (Ren et al., arXiv 1506.01497), put together from parts: section 4.3 and appendices A and B.

Classes are 0 to K - 1 in ground truth and detections; inside, the first of K + 1 scores is the background's. Images may
lie in the upper left corner of larger arrays, whose rest is zeros; ``image_hw`` says how large they are. All shapes are
static: where there are fewer boxes than slots, masks say which count.
"""

from typing import Any, Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.detection.anchors import Anchors
from resnet_jax.detection.backbones import frozen
from resnet_jax.detection.checks import check_one_of
from resnet_jax.detection.roi import Pooling
from resnet_jax.detection.rpn import Proposals, RPNHead, RPNSettings, new_layer_init, propose, rpn_losses
from resnet_jax.detection.second_stage import BoxSettings, Detections, Predictions, box_losses, detect, sample_boxes
from resnet_jax.detection.targets import Targets, check_targets

Trains: TypeAlias = Literal["joint", "rpn", "detector"]
"""Which part is trained: both together, the proposal network, or the detector on the proposals of the former."""


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
