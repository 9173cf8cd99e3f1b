"""Random erasing."""

import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from pydantic import AfterValidator, Field

from resnet_jax.data.normalization import Normalization
from resnet_jax.data.transforms.cutout import box_mask
from resnet_jax.data.transforms.transform import Batch, Transform
from resnet_jax.parts import ascending

_ATTEMPTS = 10
_Part = Annotated[float, Field(gt=0, le=1)]
_Ratio = Annotated[float, Field(gt=0)]


class RandomErasing(Transform):
    """Overwrites a random rectangle of an image (Zhong et al., arXiv 1708.04896, algorithm 1; as timm's).

    A rectangle that does not fit is drawn again, up to ten times; then the image stays as it is.
    """

    probability: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Of each image; 0: off."""
    area: Annotated[tuple[_Part, _Part], AfterValidator(ascending)] = (0.02, 1 / 3)
    """The rectangle's part of the image's pixels, the lowest and the highest; uniform in between."""
    aspect: Annotated[tuple[_Ratio, _Ratio], AfterValidator(ascending)] = (0.3, 1 / 0.3)
    """Height / width, the lowest and the highest; log-uniform in between."""
    fill: Literal["constant", "color", "pixel"] = "constant"
    """With the mean; with one normal draw for each channel; or with normal draws for each pixel."""

    @property
    def on(self) -> bool:
        return self.probability > 0

    def __call__(self, key: jax.Array, batch: Batch, normalization: Normalization, num_classes: int) -> Batch:
        images = batch["image"]
        count, height, width, channels = images.shape
        chosen_key, box_key, fill_key = jax.random.split(key, 3)
        chosen = jax.random.bernoulli(chosen_key, self.probability, (count, 1, 1, 1))
        inside = box_mask(*self.boxes(box_key, count, height, width), height, width)
        shape = {
            "constant": (),
            "color": (count, 1, 1, channels),
            "pixel": images.shape,
        }[self.fill]
        fill = jax.random.normal(fill_key, shape) if shape else 0
        return batch | {"image": jnp.where(chosen & inside, fill, images)}

    def boxes(
        self, key: jax.Array, count: int, height: int, width: int
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Top, left, bottom and right of a rectangle for each image, (count,) int32; all 0 where none fitted."""
        area_key, aspect_key, corner_key = jax.random.split(key, 3)
        shape = (count, _ATTEMPTS)
        area = height * width * jax.random.uniform(area_key, shape, minval=self.area[0], maxval=self.area[1])
        low, high = (math.log(ratio) for ratio in self.aspect)
        aspect = jnp.exp(jax.random.uniform(aspect_key, shape, minval=low, maxval=high))
        sizes = jnp.round(jnp.sqrt(jnp.stack([area * aspect, area / aspect], axis=-1))).astype(jnp.int32)
        limits = jnp.array([height, width])
        fits = (sizes < limits).all(axis=-1)
        first = jnp.argmax(fits, axis=1)[:, None, None]
        size = jnp.take_along_axis(sizes, first, axis=1)[:, 0] * fits.any(axis=1)[:, None]
        corner = jax.random.randint(corner_key, (count, 2), 0, jnp.where(size > 0, limits - size + 1, 1))
        return corner[:, 0], corner[:, 1], corner[:, 0] + size[:, 0], corner[:, 1] + size[:, 1]
