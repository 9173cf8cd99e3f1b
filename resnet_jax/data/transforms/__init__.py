"""What a training batch goes through on the devices. A new transform is a file here and a line in ``Transforms``."""

from typing import Self

import jax
from pydantic import model_validator

from resnet_jax.data.normalization import Normalization
from resnet_jax.data.transforms.color_jitter import ColorJitter
from resnet_jax.data.transforms.cutout import Cutout
from resnet_jax.data.transforms.flip import Flip
from resnet_jax.data.transforms.mixing import Mixing
from resnet_jax.data.transforms.pca_color import PcaColor
from resnet_jax.data.transforms.rand_augment import RandAugment
from resnet_jax.data.transforms.random_crop import RandomCrop
from resnet_jax.data.transforms.random_erasing import RandomErasing
from resnet_jax.data.transforms.streams import stream
from resnet_jax.data.transforms.transform import Batch, Transform
from resnet_jax.data.transforms.trivial_augment import TrivialAugment
from resnet_jax.parts import Part


class Transforms(Part):
    """The transforms, in the order in which they are applied; each is off by default.

    Those on uint8 images come first, whatever their place: the ones with ``before_normalization``.
    """

    rand_augment: RandAugment = RandAugment()
    trivial_augment: TrivialAugment = TrivialAugment()
    color_jitter: ColorJitter = ColorJitter()
    pca_color: PcaColor = PcaColor()
    random_crop: RandomCrop = RandomCrop()
    flip: Flip = Flip()
    cutout: Cutout = Cutout()
    random_erasing: RandomErasing = RandomErasing()
    mixing: Mixing = Mixing()

    @model_validator(mode="after")
    def _check_set_is_read(self) -> Self:
        for name, transform in self._all().items():
            if not transform.on and transform != type(transform)():
                changed = [key for key, value in transform if value != type(transform).model_fields[key].default]
                raise ValueError(f"{name}.{changed[0]} is set but not read, because {name} is off; turn it on")
        return self

    def apply(self, key: jax.Array, batch: Batch, normalization: Normalization, num_classes: int) -> Batch:
        """Normalises a batch with uint8 images (B, H, W, C) and applies the transforms that are on; traced.

        A function of ``key`` and the batch. See ``Transform`` for what a batch holds. Raises TypeError for a transform
        that gives images of another shape or type than it was given.
        """
        on = {name: transform for name, transform in self._all().items() if transform.on}

        def applied(name: str, batch: Batch) -> Batch:
            changed = on[name](stream(key, name), batch, normalization, num_classes)
            was, now = (f"{images.dtype} {images.shape}" for images in (batch["image"], changed["image"]))
            if was != now:
                raise TypeError(f"transform {name} gives images of {now} for {was}; it must keep both")
            return changed

        for name, transform in on.items():
            if transform.before_normalization:
                batch = applied(name, batch)
        batch = batch | {"image": normalization(batch["image"])}
        for name, transform in on.items():
            if not transform.before_normalization:
                batch = applied(name, batch)
        return batch

    def _all(self) -> dict[str, Transform]:
        return {name: getattr(self, name) for name in type(self).model_fields}
