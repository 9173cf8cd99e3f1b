"""Each operation at each magnitude against Pillow, as torchvision and timm call it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import pytest

from resnet_jax import parallel
from resnet_jax.data.transforms.image_operations import (
    OPERATIONS,
    Operations,
    apply,
    equalized,
    histograms,
    map_levels,
    stretched,
    warp,
)

FILL = 77
FACTORS = np.linspace(0.01, 1.99, 23)
MAGNITUDES = {
    "shear_x": np.linspace(-0.99, 0.99, 23),
    "shear_y": np.linspace(-0.99, 0.99, 23),
    "translate_x": np.linspace(-33, 33, 23),
    "translate_y": np.linspace(-33, 33, 23),
    "rotate": np.linspace(-135, 135, 23),
    "brightness": FACTORS,
    "color": FACTORS,
    "contrast": FACTORS,
    "sharpness": FACTORS,
    "posterize": np.arange(23) % 8 + 1,
    "solarize": np.linspace(255, 0, 23),
    "solarize_add": 5 * np.arange(23),
}


def photograph(height=31, width=28):
    """Smooth, with some noise, and not of all levels."""
    y, x = np.mgrid[:height, :width]
    planes = [128 + 90 * np.sin(x / 5 + y / 9), 100 + 80 * np.cos(y / 4), 60 + 2.0 * x]
    noise = np.random.default_rng(0).normal(0, 15, (height, width, 3))
    return np.clip(np.stack(planes, axis=-1) + noise, 10, 240).astype(np.uint8)


def by_pillow(name, magnitude, image, interpolation):
    image = PIL.Image.fromarray(image)
    nearest = interpolation == "nearest"
    options = {
        "resample": PIL.Image.Resampling.NEAREST if nearest else PIL.Image.Resampling.BILINEAR,
        "fillcolor": (FILL,) * 3,
    }

    def affine(*matrix):  # From the result to the image.
        return image.transform(image.size, PIL.Image.Transform.AFFINE, matrix, **options)

    changed = {
        "identity": lambda: image,
        "shear_x": lambda: affine(1, magnitude, 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, magnitude, 1, 0),
        "translate_x": lambda: affine(1, 0, -magnitude, 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, -magnitude),
        "rotate": lambda: image.rotate(magnitude, **options),
        "brightness": lambda: PIL.ImageEnhance.Brightness(image).enhance(magnitude),
        "color": lambda: PIL.ImageEnhance.Color(image).enhance(magnitude),
        "contrast": lambda: PIL.ImageEnhance.Contrast(image).enhance(magnitude),
        "sharpness": lambda: PIL.ImageEnhance.Sharpness(image).enhance(magnitude),
        "posterize": lambda: PIL.ImageOps.posterize(image, int(magnitude)),
        "solarize": lambda: PIL.ImageOps.solarize(image, magnitude),
        "solarize_add": lambda: image.point([min(255, i + int(magnitude)) if i < 128 else i for i in range(256)] * 3),
        "invert": lambda: PIL.ImageOps.invert(image),
        "auto_contrast": lambda: PIL.ImageOps.autocontrast(image),
        "equalize": lambda: PIL.ImageOps.equalize(image),
    }[name]()
    return np.asarray(changed)


@pytest.fixture(scope="module")
def compiled():
    return jax.jit(apply, static_argnums=(2, 3))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_pillow_s_at_every_magnitude(name, interpolation, compiled):
    image = photograph()
    magnitudes = np.asarray(MAGNITUDES.get(name, np.zeros(23)), np.float32)
    codes = jnp.full(23, OPERATIONS.index(name), jnp.int32)
    found = compiled(Operations(codes, magnitudes), np.repeat(image[None], 23, axis=0), interpolation, FILL)
    for magnitude, result in zip(magnitudes.tolist(), np.asarray(found), strict=True):
        difference = np.abs(result.astype(int) - by_pillow(name, magnitude, image, interpolation))
        # A pixel that is seen on the edge of another, or of the image, may fall on either side of it.
        assert np.mean(difference > 1) < (0.01 if name.startswith(("rotate", "shear")) else 1e-9), magnitude
        assert np.mean(difference > 0) < 0.05, magnitude


def test_each_image_of_a_batch_has_its_own_operation(compiled):
    image = photograph()
    codes = np.arange(23) % len(OPERATIONS)
    magnitudes = np.array([MAGNITUDES.get(OPERATIONS[code], np.zeros(23))[5] for code in codes], np.float32)
    found = compiled(Operations(codes, magnitudes), np.repeat(image[None], 23, axis=0), "nearest", FILL)
    for code, magnitude, result in zip(codes, magnitudes.tolist(), np.asarray(found), strict=True):
        expected = by_pillow(OPERATIONS[code], magnitude, image, "nearest").astype(int)
        assert np.mean(np.abs(result - expected) > 1) < 0.01, OPERATIONS[code]


@pytest.mark.parametrize("levels", [[5], [0, 255], [3, 9], [200] * 999 + [7]], ids=lambda levels: str(levels[-2:]))
def test_few_levels_are_stretched_and_equalized_as_pillow_does(levels):
    image = np.resize(np.array(levels, np.uint8), (32, 32))
    counts = jnp.asarray(np.bincount(image.ravel(), minlength=256)[None, None])
    for table, reference in ((stretched, PIL.ImageOps.autocontrast), (equalized, PIL.ImageOps.equalize)):
        expected = np.asarray(reference(PIL.Image.fromarray(image)))
        np.testing.assert_array_equal(np.asarray(table(counts))[0, 0][image], expected)


def test_images_too_small_to_smooth_stay_as_they_are():
    images = np.random.default_rng(0).integers(0, 256, (1, 2, 5, 3), dtype=np.uint8)
    operations = Operations(jnp.array([OPERATIONS.index("sharpness")]), jnp.array([0.0]))
    smoothed = jax.jit(apply, static_argnums=(2, 3))(operations, images, "nearest", 0)
    np.testing.assert_array_equal(smoothed, images)


def test_a_batch_on_a_mesh_stays_where_it_is(eight_devices):
    """Nothing of it is gathered or summed over the devices."""
    sharded = parallel.sharded_batch(eight_devices)
    images = jax.ShapeDtypeStruct((16, 6, 8, 3), jnp.uint8, sharding=sharded)
    places = jax.ShapeDtypeStruct((16, 2, 3), jnp.float32, sharding=sharded)
    tables = jax.ShapeDtypeStruct((16, 3, 256), jnp.uint8, sharding=sharded)
    for run, arguments in (
        (histograms, (images,)),
        (map_levels, (images, tables)),
        (lambda images, places: warp(images, places, "bilinear", 0), (images, places)),
    ):
        program = jax.jit(run).lower(*arguments).compile().as_text()
        assert not re.search(r" (all-reduce|all-gather|all-to-all|collective-permute)", program)
