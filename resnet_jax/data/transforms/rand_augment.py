"""RandAugment."""

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
from pydantic import Field, model_validator

from resnet_jax.data.normalization import Normalization
from resnet_jax.data.transforms.image_operations import OPERATIONS, Interpolation, Operations, apply
from resnet_jax.data.transforms.transform import Batch, Transform, check_rgb
from resnet_jax.parts import Count, NonNegativeFloat, NonNegativeInt

# By operation: its magnitude out of a level from 0 to 1, a sign of -1 or 1, and the height and width of the images.
Magnitudes = dict[str, Callable[[jax.Array, jax.Array, int, int], jax.Array]]

TORCHVISION: Magnitudes = {
    "identity": lambda level, sign, height, width: 0 * level,
    "shear_x": lambda level, sign, height, width: sign * 0.3 * level,
    "shear_y": lambda level, sign, height, width: sign * 0.3 * level,
    "translate_x": lambda level, sign, height, width: sign * jnp.floor(level * (150 / 331 * width)),
    "translate_y": lambda level, sign, height, width: sign * jnp.floor(level * (150 / 331 * height)),
    "rotate": lambda level, sign, height, width: sign * 30 * level,
    "brightness": lambda level, sign, height, width: 1 + sign * 0.9 * level,
    "color": lambda level, sign, height, width: 1 + sign * 0.9 * level,
    "contrast": lambda level, sign, height, width: 1 + sign * 0.9 * level,
    "sharpness": lambda level, sign, height, width: 1 + sign * 0.9 * level,
    "posterize": lambda level, sign, height, width: 8 - jnp.round(4 * level),
    "solarize": lambda level, sign, height, width: 255 * (1 - level),
    "auto_contrast": lambda level, sign, height, width: 0 * level,
    "equalize": lambda level, sign, height, width: 0 * level,
}
# timm's "increasing" set ("inc1"): every operation is stronger at a higher level.
TIMM: Magnitudes = {
    "auto_contrast": lambda level, sign, height, width: 0 * level,
    "equalize": lambda level, sign, height, width: 0 * level,
    "invert": lambda level, sign, height, width: 0 * level,
    "rotate": lambda level, sign, height, width: sign * 30 * level,
    "posterize": lambda level, sign, height, width: 4 - jnp.floor(4 * level),
    "solarize": lambda level, sign, height, width: 256 - jnp.floor(256 * level),
    "solarize_add": lambda level, sign, height, width: jnp.floor(110 * level),
    "color": lambda level, sign, height, width: jnp.maximum(0.1, 1 + sign * 0.9 * level),
    "contrast": lambda level, sign, height, width: jnp.maximum(0.1, 1 + sign * 0.9 * level),
    "brightness": lambda level, sign, height, width: jnp.maximum(0.1, 1 + sign * 0.9 * level),
    "sharpness": lambda level, sign, height, width: jnp.maximum(0.1, 1 + sign * 0.9 * level),
    "shear_x": lambda level, sign, height, width: sign * 0.3 * level,
    "shear_y": lambda level, sign, height, width: sign * 0.3 * level,
    "translate_x": lambda level, sign, height, width: sign * 0.45 * level * width,
    "translate_y": lambda level, sign, height, width: sign * 0.45 * level * height,
}
# Of EfficientNet's and ResNet-RS's release (tensorflow/tpu, autoaugment.py), but for its cutout.
TPU: Magnitudes = TIMM | {
    "posterize": lambda level, sign, height, width: jnp.floor(4 * level),
    "solarize": lambda level, sign, height, width: jnp.floor(256 * level),
    **dict.fromkeys(
        ("color", "contrast", "brightness", "sharpness"), lambda level, sign, height, width: 0.1 + 1.8 * level
    ),
    "translate_x": lambda level, sign, height, width: sign * 100 * level,
    "translate_y": lambda level, sign, height, width: sign * 100 * level,
}
_SETS = {"torchvision": TORCHVISION, "timm": TIMM, "tpu": TPU}


class RandAugment(Transform):
    """A few operations drawn at random for each image, all of about one strength (Cubuk et al., arXiv 1909.13719).

    The sets of operations in common use: "torchvision" (``torchvision.transforms.RandAugment``), "timm" (timm's
    ``rand-...-inc1``, of "ResNet strikes back", which the probability and the spread of magnitudes are from, too) and
    "tpu" (EfficientNet's and ResNet-RS's). In the last posterizing and solarizing are milder at a higher level.
    """

    before_normalization: ClassVar[bool] = True

    layers: NonNegativeInt = 0
    """Operations for each image, one after the other; 2 is usual; 0: off."""
    magnitude: NonNegativeFloat = 9.0
    """The strength, from 0 to ``bins`` - 1."""
    magnitude_std: NonNegativeFloat = 0.0
    """Standard deviation of normal draws that are added to ``magnitude``."""
    bins: Annotated[Count, Field(ge=2)] = 31
    """31 in torchvision, where the strongest magnitude thus is 30; 11 in the others, where it is 10."""
    probability: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Of each operation to be done at all; 0.5 in timm."""
    operations: Literal["torchvision", "timm", "tpu"] = "torchvision"
    interpolation: Interpolation = "nearest"
    fill: Annotated[int, Field(ge=0, le=255)] = 0
    """The level where a warped image has no pixels; the others' is about the mean, 128."""

    @model_validator(mode="after")
    def _check_magnitude(self) -> Self:
        if self.magnitude > self.bins - 1:
            raise ValueError(
                f"magnitude {self.magnitude:g} is above bins - 1, {self.bins - 1}; lower it, or raise bins"
            )
        return self

    @property
    def on(self) -> bool:
        return self.layers > 0

    def __call__(self, key: jax.Array, batch: Batch, normalization: Normalization, num_classes: int) -> Batch:
        """Raises UserError for images that are not RGB."""
        images = batch["image"]
        check_rgb("rand_augment", images)
        for layer_key in jax.random.split(key, self.layers):
            images = apply(self.draw(layer_key, *images.shape[:3]), images, self.interpolation, self.fill)
        return batch | {"image": images}

    def draw(self, key: jax.Array, count: int, height: int, width: int) -> Operations:
        """The operations of one layer for images of this size."""
        choice_key, sign_key, level_key, done_key = jax.random.split(key, 4)
        level = self.magnitude + self.magnitude_std * jax.random.normal(level_key, (count,))
        level = jnp.clip(level / (self.bins - 1), 0, 1)
        sign = jax.random.rademacher(sign_key, (count,), jnp.float32)
        known = _SETS[self.operations]
        drawn = operations_at(
            known, jax.random.randint(choice_key, (count,), 0, len(known)), level, sign, height, width
        )
        done = jax.random.bernoulli(done_key, self.probability, (count,))
        return Operations(jnp.where(done, drawn.code, OPERATIONS.index("identity")), drawn.magnitude)


def operations_at(
    known: Magnitudes, choice: jax.Array, level: jax.Array, sign: jax.Array, height: int, width: int
) -> Operations:
    """The operations at the places ``choice`` (B,) of ``known``, at levels from 0 to 1 and signs of -1 or 1."""
    codes = jnp.array([OPERATIONS.index(name) for name in known])
    magnitudes = jnp.stack([magnitude(level, sign, height, width) for magnitude in known.values()])
    return Operations(codes[choice], jnp.take_along_axis(magnitudes, choice[None], axis=0)[0])
