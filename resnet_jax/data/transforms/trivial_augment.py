"""TrivialAugment, with its wide range of magnitudes."""

from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from pydantic import Field

from resnet_jax.data.normalization import Normalization
from resnet_jax.data.transforms.image_operations import Interpolation, Operations, apply
from resnet_jax.data.transforms.rand_augment import Magnitudes, operations_at
from resnet_jax.data.transforms.transform import Batch, Transform, check_rgb

_BINS = 31
WIDE: Magnitudes = {
    "identity": lambda level, sign, height, width: 0 * level,
    "shear_x": lambda level, sign, height, width: sign * 0.99 * level,
    "shear_y": lambda level, sign, height, width: sign * 0.99 * level,
    "translate_x": lambda level, sign, height, width: sign * jnp.floor(32 * level),
    "translate_y": lambda level, sign, height, width: sign * jnp.floor(32 * level),
    "rotate": lambda level, sign, height, width: sign * 135 * level,
    "brightness": lambda level, sign, height, width: 1 + sign * 0.99 * level,
    "color": lambda level, sign, height, width: 1 + sign * 0.99 * level,
    "contrast": lambda level, sign, height, width: 1 + sign * 0.99 * level,
    "sharpness": lambda level, sign, height, width: 1 + sign * 0.99 * level,
    "posterize": lambda level, sign, height, width: 8 - jnp.round(6 * level),
    "solarize": lambda level, sign, height, width: 255 * (1 - level),
    "auto_contrast": lambda level, sign, height, width: 0 * level,
    "equalize": lambda level, sign, height, width: 0 * level,
}


class TrivialAugment(Transform):
    """One operation for each image, at one of 31 magnitudes, both uniform (Müller and Hutter, arXiv 2103.10158).

    The wide set of operations and magnitudes, as ``torchvision.transforms.TrivialAugmentWide`` has them.
    """

    before_normalization: ClassVar[bool] = True

    probability: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Of each image to be changed, 1 in the paper; 0: off."""
    interpolation: Interpolation = "nearest"
    fill: Annotated[int, Field(ge=0, le=255)] = 0
    """The level where a warped image has no pixels."""

    @property
    def on(self) -> bool:
        return self.probability > 0

    def __call__(self, key: jax.Array, batch: Batch, normalization: Normalization, num_classes: int) -> Batch:
        """Raises UserError for images that are not RGB."""
        images = batch["image"]
        check_rgb("trivial_augment", images)
        draw_key, done_key = jax.random.split(key)
        changed = apply(self.draw(draw_key, *images.shape[:3]), images, self.interpolation, self.fill)
        done = jax.random.bernoulli(done_key, self.probability, (len(images), 1, 1, 1))
        return batch | {"image": jnp.where(done, changed, images)}

    def draw(self, key: jax.Array, count: int, height: int, width: int) -> Operations:
        """The operations for images of this size."""
        choice_key, level_key, sign_key = jax.random.split(key, 3)
        choice = jax.random.randint(choice_key, (count,), 0, len(WIDE))
        level = jax.random.randint(level_key, (count,), 0, _BINS) / (_BINS - 1)
        sign = jax.random.rademacher(sign_key, (count,), jnp.float32)
        return operations_at(WIDE, choice, level, sign, height, width)
