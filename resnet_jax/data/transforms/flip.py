"""Mirror images."""

from typing import Annotated

import jax
import jax.numpy as jnp
from pydantic import Field

from resnet_jax.data.normalization import Normalization
from resnet_jax.data.transforms.transform import Batch, Transform


class Flip(Transform):
    """Mirrors each image left to right with a probability; the paper's is 1/2 (sections 3.4 and 4.2)."""

    probability: Annotated[float, Field(ge=0, le=1)] = 0.0
    """0: off."""

    @property
    def on(self) -> bool:
        return self.probability > 0

    def __call__(self, key: jax.Array, batch: Batch, normalization: Normalization, num_classes: int) -> Batch:
        images = batch["image"]
        flip = jax.random.bernoulli(key, self.probability, (images.shape[0], 1, 1, 1))
        return batch | {"image": jnp.where(flip, images[:, :, ::-1, :], images)}
