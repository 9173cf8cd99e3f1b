"""The per-class region proposal network of ImageNet localisation (appendix C)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.detection.anchors import Anchors
from resnet_jax.detection.rpn import Proposals, RPNHead, RPNSettings, propose, rpn_losses

LOCALISATION_RPN = RPNSettings(samples=8, straddle=None, test_post_nms=1)
"""Eight anchors of each image count, at most half of them positive (appendix C); the best box is the answer."""


class Localiser(nn.Module):
    """For an image and a class, the boxes of that class: a score and a box for each class at each anchor.

    backbone: one of ``backbones``; its head is not used.
    num_classes: K.
    anchors: on as many maps as the backbone has.
    rpn_channels: of the 3x3 convolution.
    rpn: settings.
    """

    backbone: Any
    num_classes: int
    anchors: Anchors
    rpn_channels: int = 512
    rpn: RPNSettings = LOCALISATION_RPN

    def setup(self) -> None:
        self.rpn_head = RPNHead(
            self.anchors.per_position,
            self.rpn_channels,
            self.num_classes,
            dtype=self.backbone.dtype,
            kernels=self.backbone.kernels,
        )

    def __call__(self, images: jax.Array, image_hw: jax.Array, labels: jax.Array) -> Proposals:
        """For images (B, H, W, 3) of ``image_hw`` (B, 2), and L classes of each, ``labels`` (B, L): (B, L, R, ...)."""
        maps, scores, deltas = self._outputs(images, train=False)
        anchors = self._anchors(maps, images)

        def of(labels: jax.Array) -> Proposals:
            chosen = [of_class(score, delta, labels) for score, delta in zip(scores, deltas, strict=True)]
            return propose([score for score, _ in chosen], [delta for _, delta in chosen], anchors, image_hw, self.rpn)

        return jax.vmap(of, in_axes=1, out_axes=1)(labels)

    def losses(
        self,
        images: jax.Array,
        image_hw: jax.Array,
        labels: jax.Array,
        gt_boxes: jax.Array,
        gt_valid: jax.Array,
        train: bool = True,
    ) -> dict[str, jax.Array]:
        """ "objectness" and "rpn_box" of the one class that is known to be in each image.

        labels: (B,); gt_boxes: (B, G, 4) and gt_valid: (B, G) bool, of that class. Needs an rng called "sample".
        """
        maps, scores, deltas = self._outputs(images, train)
        chosen = [of_class(score, delta, labels) for score, delta in zip(scores, deltas, strict=True)]
        score, delta = (jnp.concatenate(parts, axis=1) for parts in zip(*chosen, strict=True))
        anchors = jnp.concatenate(self._anchors(maps, images))
        key = self.make_rng("sample")
        objectness, box = rpn_losses(score, delta, anchors, image_hw, gt_boxes, gt_valid, self.rpn, key)
        return {"objectness": objectness, "rpn_box": box}

    def _outputs(
        self, images: jax.Array, train: bool
    ) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        maps = self.backbone(images, train)
        scores, deltas = zip(*(self.rpn_head(x) for x in maps), strict=True)
        return maps, scores, deltas

    def _anchors(self, maps: tuple[jax.Array, ...], images: jax.Array) -> tuple[jax.Array, ...]:
        return self.anchors.on(images.shape[1:3], [x.shape[1:3] for x in maps], self.backbone.strides)


def of_class(scores: jax.Array, deltas: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of per-class scores (B, N, K) and deltas (B, N, K, 4) those of one class an image, (B,): (B, N) and (B, N, 4)."""
    scores = jnp.take_along_axis(scores, labels[:, None, None], axis=2)[:, :, 0]
    return scores, jnp.take_along_axis(deltas, labels[:, None, None, None], axis=2)[:, :, 0]
