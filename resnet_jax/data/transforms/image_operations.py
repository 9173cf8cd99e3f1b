"""The image operations of RandAugment, TrivialAugment and colour jitter, on batches of uint8 RGB images.

Each image of a batch may have its own operation. So that none of them is computed for the images that have another, an
operation is put together from three stages, each of which all images pass: one affine warp, one table of 256 levels for
each channel, and one blend with a grey or a smoothed image. The stages that an operation does not need leave its images
as they are, to the bit. Definitions are Pillow's, as torchvision and timm call them.
"""

from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "solarize_add",
    "invert",
    "auto_contrast",
    "equalize",
)
Interpolation: TypeAlias = Literal["nearest", "bilinear"]


class Operations(NamedTuple):
    """What is done to each image of a batch: ``code`` (B,) int32, a place in OPERATIONS, and ``magnitude`` (B,).

    Magnitudes of the operations (others have none):
        shear_x, shear_y: the tangent of the angle. translate_x, translate_y: pixels, to the right and down.
        rotate: degrees, counter-clockwise. brightness, color, contrast, sharpness: 1 leaves the image as it is, 0 is
        black, grey, the mean grey, smooth. posterize: bits that are kept, from 0 to 8. solarize: the level from which
        on levels are inverted. solarize_add: what is added to levels below 128.
    """

    code: jax.Array
    magnitude: jax.Array

    def are(self, *names: str) -> jax.Array:
        """(B,) bool: whether an image's operation is one of these."""
        return jnp.isin(self.code, jnp.array([OPERATIONS.index(name) for name in names]))

    def magnitude_of(self, name: str, otherwise: float = 0.0) -> jax.Array:
        """(B,): the magnitude where the operation is this one, and ``otherwise`` where it is not."""
        return jnp.where(self.are(name), self.magnitude, otherwise)


def apply(operations: Operations, images: jax.Array, interpolation: Interpolation, fill: int) -> jax.Array:
    """uint8 images (B, H, W, 3), each after its operation. A warp leaves ``fill`` (0 to 255) where it sees nothing."""
    images = warp(images, matrices(operations, *images.shape[1:3]), interpolation, fill)
    images = map_levels(images, _tables(operations, images))
    factor = jnp.where(operations.are("color", "sharpness"), operations.magnitude, 1.0)
    other = jnp.where(_each(operations.are("sharpness")), smooth(images), grey(images)[..., None])
    return blend(other, images, factor)


# Geometry.


def matrices(operations: Operations, height: int, width: int) -> jax.Array:
    """(B, 2, 3): from (x, y, 1) of a pixel of the result to (x, y) of the image, in pixels from its top left corner.

    Shears keep the corner in its place, rotations the centre.
    """
    angle = -jnp.radians(operations.magnitude_of("rotate"))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    rows = [
        [
            cos,
            sin + operations.magnitude_of("shear_x"),
            x - cos * x - sin * y - operations.magnitude_of("translate_x"),
        ],
        [
            -sin + operations.magnitude_of("shear_y"),
            cos,
            y + sin * x - cos * y - operations.magnitude_of("translate_y"),
        ],
    ]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=1)


def warp(images: jax.Array, matrices: jax.Array, interpolation: Interpolation, fill: int) -> jax.Array:
    """uint8 images (B, H, W, C) seen through affine ``matrices`` (B, 2, 3); pixels from outside are ``fill``.

    As ``PIL.Image.transform``: between the centres of pixels, and half a pixel at the edges is that of the edge.
    """
    batch, height, width, channels = images.shape
    ones = jnp.ones((height, width))
    # The centres of pixels are at halves.
    places = jnp.stack([ones * (jnp.arange(width) + 0.5), ones * (jnp.arange(height)[:, None] + 0.5), ones], axis=-1)
    x, y = jnp.moveaxis(jnp.einsum("bij,hwj->bhwi", matrices, places, precision="highest"), -1, 0)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    flat = images.reshape(batch, height * width, channels)

    def pixels(row: jax.Array, column: jax.Array) -> jax.Array:
        index = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
        return jnp.take_along_axis(flat, index.reshape(batch, -1, 1), axis=1).reshape(images.shape)

    if interpolation == "nearest":
        seen = pixels(jnp.floor(y).astype(jnp.int32), jnp.floor(x).astype(jnp.int32))
    else:
        left, top = jnp.floor(x - 0.5), jnp.floor(y - 0.5)
        dx, dy = (x - 0.5 - left)[..., None], (y - 0.5 - top)[..., None]
        column, row = left.astype(jnp.int32), top.astype(jnp.int32)
        upper = pixels(row, column) * (1 - dx) + pixels(row, column + 1) * dx
        lower = pixels(row + 1, column) * (1 - dx) + pixels(row + 1, column + 1) * dx
        seen = (upper * (1 - dy) + lower * dy).astype(jnp.uint8)  # Pillow cuts the fraction off.
    return jnp.where(inside[..., None], seen, jnp.uint8(fill))


# Levels.


def map_levels(images: jax.Array, tables: jax.Array) -> jax.Array:
    """uint8 images (B, H, W, C), with each level replaced by that of its image's and channel's table (B, C, 256)."""
    batch, _, _, channels = images.shape
    places = jnp.arange(channels) * 256 + images.astype(jnp.int32)
    found = jnp.take_along_axis(tables.reshape(batch, -1), places.reshape(batch, -1), axis=1)
    return found.reshape(images.shape)


def _tables(operations: Operations, images: jax.Array) -> jax.Array:
    """(B, 3, 256) uint8."""
    levels = jnp.arange(256)
    magnitude = operations.magnitude[:, None]
    mean = mean_grey(images)[:, None]
    mask = jnp.int32(256) - jnp.left_shift(1, 8 - magnitude.astype(jnp.int32))
    alike = jnp.select(  # (B, 256): the same for all channels.
        [
            operations.are(name)[:, None]
            for name in ("brightness", "contrast", "posterize", "solarize", "solarize_add", "invert")
        ],
        [
            _blend_levels(0, levels, magnitude),
            _blend_levels(mean, levels, magnitude),
            levels & mask,
            jnp.where(levels < magnitude, levels, 255 - levels),
            jnp.where(levels < 128, jnp.minimum(255, levels + magnitude.astype(jnp.int32)), levels),
            255 - levels,
        ],
        levels,
    )
    counts = histograms(images)
    tables = jnp.where(operations.are("auto_contrast")[:, None, None], stretched(counts), alike[:, None])
    return jnp.where(operations.are("equalize")[:, None, None], equalized(counts), tables).astype(jnp.uint8)


def histograms(images: jax.Array) -> jax.Array:
    """(B, C, 256) int32: how many pixels of each channel have each level."""
    of_channel = lambda levels: jnp.zeros(256, jnp.int32).at[levels.ravel()].add(1)  # noqa: E731
    # Mapped over the batch, and not of one long array for all of it, which devices would have to sum up.
    return jax.vmap(jax.vmap(of_channel))(jnp.moveaxis(images, -1, 1))


def stretched(counts: jax.Array) -> jax.Array:
    """Tables (B, C, 256) that stretch the levels that occur to 0 to 255; with one level only, the identity."""
    levels = jnp.arange(256)
    low = jnp.argmax(counts > 0, axis=-1)[..., None]
    high = 255 - jnp.argmax(counts[..., ::-1] > 0, axis=-1)[..., None]
    table = jnp.clip((levels - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    return jnp.where(high > low, table, levels)


def equalized(counts: jax.Array) -> jax.Array:
    """Tables (B, C, 256) that make each level about equally frequent, as ``PIL.ImageOps.equalize`` does."""
    levels = jnp.arange(256)
    last = 255 - jnp.argmax(counts[..., ::-1] > 0, axis=-1)[..., None]
    total = counts.sum(axis=-1, keepdims=True)
    step = (total - jnp.take_along_axis(counts, last, axis=-1)) // 255
    below = jnp.cumsum(counts, axis=-1) - counts
    table = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255)
    return jnp.where(step > 0, table, levels)


# Blends.


def grey(images: jax.Array) -> jax.Array:
    """(B, H, W) int32 luma of RGB images (ITU-R 601-2), as Pillow converts to mode "L"."""
    red, green, blue = (images[..., channel].astype(jnp.int32) for channel in range(3))
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def mean_grey(images: jax.Array) -> jax.Array:
    """(B,): the mean of ``grey``, rounded to a level."""
    luma = grey(images)
    return luma.sum(axis=(1, 2)) * 2 // (luma.shape[1] * luma.shape[2]) + 1 >> 1


def smooth(images: jax.Array) -> jax.Array:
    """uint8 images (B, H, W, C) after the 3x3 mean in which the centre counts five times; the border stays as it is."""
    wide = images.astype(jnp.int32)
    _, height, width, _ = images.shape
    if height < 3 or width < 3:
        return images
    total = 4 * wide[:, 1:-1, 1:-1]
    for row in range(3):
        for column in range(3):
            total += wide[:, row : height - 2 + row, column : width - 2 + column]
    return images.at[:, 1:-1, 1:-1].set(((2 * total + 13) // 26).astype(jnp.uint8))  # Rounded to the nearest.


def blend(zero: jax.Array | int, one: jax.Array, factor: jax.Array) -> jax.Array:
    """uint8 images (B, H, W, C): ``zero`` where ``factor`` (B,) is 0, ``one`` where it is 1, on the line elsewhere."""
    return _blend_levels(zero, one, _each(factor)).astype(jnp.uint8)


def _blend_levels(zero: jax.Array | int, one: jax.Array, factor: jax.Array) -> jax.Array:
    """As ``PIL.Image.blend``, which cuts fractions off, in int32."""
    start = jnp.asarray(zero, jnp.float32)
    return jnp.clip(start + factor * (one.astype(jnp.float32) - start), 0, 255).astype(jnp.int32)


def _each(values: jax.Array) -> jax.Array:
    """(B,) to (B, 1, 1, 1)."""
    return values[:, None, None, None]
