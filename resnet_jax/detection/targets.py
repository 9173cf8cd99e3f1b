"""The ground truth of a batch of images."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from resnet_jax.errors import UserError


class Targets(NamedTuple):
    """The ground truth of a batch: boxes (B, G, 4) in pixels, labels (B, G) of 0 to K - 1, valid (B, G) bool."""

    boxes: jax.Array
    labels: jax.Array
    valid: jax.Array


def check_targets(images: jax.Array, image_hw: jax.Array, targets: Targets) -> None:
    """Raises UserError unless the shapes of a batch belong together: (B, H, W, 3), (B, 2), and those of ``Targets``."""
    if not isinstance(targets, Targets):
        raise UserError(f"targets are a {type(targets).__name__}; give a resnet_jax.detection.targets.Targets")
    given = {"images": images, "image_hw": image_hw, **targets._asdict()}
    shapes = {name: jnp.shape(value) for name, value in given.items()}
    sizes = {"B": shapes["images"][:1], "G": shapes["labels"][1:2], "2": (2,), "3": (3,), "4": (4,)}
    wanted = {"images": "B H W 3", "image_hw": "B 2", "labels": "B G", "boxes": "B G 4", "valid": "B G"}
    for name, axes in wanted.items():
        fits = len(shapes[name]) == len(axes.split()) and all(
            sizes.get(axis, (size,)) == (size,) for axis, size in zip(axes.split(), shapes[name], strict=True)
        )
        if not fits:
            raise UserError(
                f"{name} has shape {shapes[name]}; it must be ({', '.join(axes.split())}) where images have shape "
                f"{shapes['images']} and labels, (B, G), {shapes['labels']}"
            )
