"""mixup and CutMix, alone or by chance."""

from typing import Annotated, Literal, Self

import jax
import jax.numpy as jnp
from pydantic import Field, model_validator

from resnet_jax.data.normalization import Normalization
from resnet_jax.data.transforms.cutout import box_mask
from resnet_jax.data.transforms.transform import Batch, Transform
from resnet_jax.errors import UserError
from resnet_jax.parts import Count, NonNegativeFloat

_Probability = Annotated[float, Field(ge=0, le=1)]


class Mixing(Transform):
    """Mixes each image and its target with those of the example before it in the batch.

    By mixup (Zhang et al., arXiv 1710.09412, section 2) the whole images, by CutMix (Yun et al., arXiv 1905.04899,
    section 3.1) a rectangle. Where both are on, each draw is of one of them, as in timm and torchvision. It is one
    transform and not two, because two would mix an image twice.
    """

    mixup_alpha: NonNegativeFloat = 0.0
    """Both parameters of the beta distribution of mixup's shares; 0: no mixup."""
    cutmix_alpha: NonNegativeFloat = 0.0
    """The same of CutMix; 0: no CutMix."""
    probability: _Probability = 1.0
    """Of mixing at all."""
    switch_probability: _Probability = 0.5
    """Of CutMix, where both are on."""
    draw: Literal["batch", "example"] | Count = "batch"
    """Whether share, rectangle and chances are drawn for the batch, for each example, or for each so many examples one
    after the other, as timm and torchvision do for the batch of a GPU. Parts of a batch (``accumulate_steps``)
    have some of each draw."""

    @model_validator(mode="after")
    def _check_switch_is_read(self) -> Self:
        if self.switch_probability != 0.5 and not (self.mixup_alpha and self.cutmix_alpha):
            raise ValueError("switch_probability is set but not read, because mixup and CutMix are not both on")
        return self

    @property
    def on(self) -> bool:
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    def __call__(self, key: jax.Array, batch: Batch, normalization: Normalization, num_classes: int) -> Batch:
        """Raises UserError where the batch cannot be divided as ``draw`` says."""
        images = batch["image"]
        target = batch.get("target")
        if target is None:
            target = jax.nn.one_hot(batch["label"], num_classes)
        group = self.examples_a_draw(len(images))
        count = len(images) // group
        mixed_key, switch_key, mixup_key, cutmix_key, corner_key = jax.random.split(key, 5)
        # The weight of the image itself, and where it stays as it is.
        weight = jnp.ones((count, 1, 1, 1))
        share = jnp.ones(count)
        if self.mixup_alpha:
            share = jax.random.beta(mixup_key, self.mixup_alpha, self.mixup_alpha, (count,))
            weight = share[:, None, None, None]
        if self.cutmix_alpha:
            switched = jax.random.bernoulli(switch_key, self.switch_probability if self.mixup_alpha else 1.0, (count,))
            wanted = jax.random.beta(cutmix_key, self.cutmix_alpha, self.cutmix_alpha, (count,))
            pasted = box_mask(*boxes(corner_key, wanted, *images.shape[1:3]), *images.shape[1:3])
            weight = jnp.where(switched[:, None, None, None], ~pasted, weight)
            share = jnp.where(switched, 1 - pasted.mean(axis=(1, 2, 3)), share)  # Of what the image's edges leave.
        mixed = jax.random.bernoulli(mixed_key, self.probability, (count,))
        weight = jnp.where(mixed[:, None, None, None], weight, 1)
        share = jnp.where(mixed, share, 1)[:, None]
        weight, share = jnp.repeat(weight, group, axis=0), jnp.repeat(share, group, axis=0)
        return batch | {
            "image": weight * images + (1 - weight) * jnp.roll(images, 1, axis=0),
            "target": share * target + (1 - share) * jnp.roll(target, 1, axis=0),
        }

    def examples_a_draw(self, batch_size: int) -> int:
        """How many examples of a batch share a draw. Raises UserError where ``draw`` does not divide the batch."""
        if isinstance(self.draw, str):
            return batch_size if self.draw == "batch" else 1
        if batch_size % self.draw and batch_size > self.draw:
            raise UserError(
                f"config.batch_size {batch_size} is not a multiple of config.transforms.mixing.draw {self.draw}; "
                f"change one of the two"
            )
        return min(self.draw, batch_size)


def boxes(
    key: jax.Array, share: jax.Array, height: int, width: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Top, left, bottom and right of CutMix's rectangles, (B,): of 1 - ``share`` (B,) of the pixels, cut at the edges.

    Their centres are uniform over the image, and their aspect is the image's.
    """
    limits = jnp.array([height, width])
    center = jax.random.randint(key, (len(share), 2), 0, limits)
    half = jnp.floor(jnp.sqrt(1 - share)[:, None] * limits).astype(jnp.int32) // 2
    low, high = jnp.clip(center - half, 0, limits), jnp.clip(center + half, 0, limits)
    return low[:, 0], low[:, 1], high[:, 0], high[:, 1]
