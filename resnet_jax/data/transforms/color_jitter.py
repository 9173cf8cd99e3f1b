"""Random brightness, contrast, saturation and hue."""

from collections.abc import Callable
from functools import partial
from itertools import permutations
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from pydantic import Field

from resnet_jax.data.normalization import Normalization
from resnet_jax.data.transforms.image_operations import blend, grey, mean_grey
from resnet_jax.data.transforms.transform import Batch, Transform, check_rgb
from resnet_jax.parts import NonNegativeFloat


class ColorJitter(Transform):
    """Changes the colours of each image as a whole, as ``torchvision.transforms.ColorJitter``; all 0: off.

    brightness, contrast, saturation: b draws a factor uniformly from [max(0, 1 - b), 1 + b] for each image.
    hue: h draws a shift uniformly from [-h, h], of the circle of hues.

    The four are done in a random order, which all images of a batch share.
    """

    before_normalization: ClassVar[bool] = True

    brightness: NonNegativeFloat = 0.0
    contrast: NonNegativeFloat = 0.0
    saturation: NonNegativeFloat = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0

    @property
    def on(self) -> bool:
        return any((self.brightness, self.contrast, self.saturation, self.hue))

    def __call__(self, key: jax.Array, batch: Batch, normalization: Normalization, num_classes: int) -> Batch:
        """Raises UserError for images that are not RGB."""
        images = batch["image"]
        check_rgb("color_jitter", images)
        order_key, *keys = jax.random.split(key, 5)

        def draw(key: jax.Array, low: float, high: float) -> jax.Array:
            return jax.random.uniform(key, (len(images),), minval=low, maxval=high)

        strengths = (self.brightness, self.contrast, self.saturation)
        factors = [draw(keys[i], max(0.0, 1 - strength), 1 + strength) for i, strength in enumerate(strengths)]
        hues = draw(keys[3], -self.hue, self.hue)
        changes: dict[str, Callable[[jax.Array], jax.Array]] = {
            "brightness": lambda images: blend(0, images, factors[0]),
            "contrast": lambda images: blend(mean_grey(images)[:, None, None, None], images, factors[1]),
            "saturation": lambda images: blend(grey(images)[..., None], images, factors[2]),
            "hue": lambda images: shift_hue(images, hues),
        }

        def in_order(names: tuple[str, ...], images: jax.Array) -> jax.Array:
            for name in names:
                images = changes[name](images)
            return images

        orders = permutations(name for name in changes if getattr(self, name))
        branches = [partial(in_order, names) for names in orders]
        images = jax.lax.switch(jax.random.randint(order_key, (), 0, len(branches)), branches, images)
        return batch | {"image": images}


def shift_hue(images: jax.Array, shift: jax.Array) -> jax.Array:
    """uint8 RGB images (B, H, W, 3) with hues moved by ``shift`` (B,) of the circle; value and saturation stay.

    In floats, through HSV, rounded to the nearest level.
    """
    rgb = images.astype(jnp.float32)
    value, low = rgb.max(axis=-1), rgb.min(axis=-1)
    chroma = value - low
    red, green, blue = jnp.moveaxis(rgb, -1, 0)
    safe = jnp.where(chroma > 0, chroma, 1)
    sextant = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = jnp.where(chroma > 0, sextant, 0) + 6 * shift[:, None, None]

    def channel(offset: int) -> jax.Array:
        place = (offset + hue) % 6
        return value - chroma * jnp.clip(jnp.minimum(place, 4 - place), 0, 1)

    shifted = jnp.stack([channel(5), channel(3), channel(1)], axis=-1)
    return jnp.clip(jnp.round(shifted), 0, 255).astype(jnp.uint8)
