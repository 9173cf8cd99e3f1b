"""Colour jitter against Pillow and colorsys, and the ranges that it draws from."""

import colorsys
from functools import partial

import jax
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest

from resnet_jax.data.normalization import Normalization
from resnet_jax.data.transforms import ColorJitter
from resnet_jax.data.transforms.color_jitter import shift_hue
from resnet_jax.errors import UserError

NONE = Normalization(np.zeros(3, np.float32), np.ones(3, np.float32))


def images(count, channels=3):
    return np.random.default_rng(0).integers(30, 120, (count, 6, 5, channels), dtype=np.uint8)


def jittered(jitter, batch, seed):
    return np.asarray(jitter(jax.random.key(seed), {"image": batch}, NONE, 10)["image"])


@pytest.mark.parametrize("shift", [-0.5, -0.3, -0.01, 0.0, 0.1, 0.25, 0.5])
def test_the_hue_moves_around_the_circle_as_in_colorsys(shift):
    batch = np.random.default_rng(1).integers(0, 256, (1, 12, 12, 3), dtype=np.uint8)
    batch[0, 0, 0], batch[0, 0, 1] = 7, (9, 9, 200)  # Grey; and two channels alike.
    found = np.asarray(shift_hue(batch, np.array([shift], np.float32)))[0].reshape(-1, 3)
    for result, pixel in zip(found, batch[0].reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255.0))
        expected = 255 * np.array(colorsys.hsv_to_rgb((hue + shift) % 1.0, saturation, value))
        assert np.abs(result - expected).max() <= 0.51


@pytest.mark.parametrize(
    ("key", "enhancer"),
    [
        ("brightness", PIL.ImageEnhance.Brightness),
        ("contrast", PIL.ImageEnhance.Contrast),
        ("saturation", PIL.ImageEnhance.Color),
    ],
)
@pytest.mark.parametrize("strength", [0.4, 1.5])
@pytest.mark.extensive
def test_a_factor_is_uniform_in_its_range_and_is_that_of_pillow(key, enhancer, strength):
    image = images(1)[0]
    found = jittered(ColorJitter(**{key: strength}), np.repeat(image[None], 400, axis=0), seed=2)
    lowest, highest = max(0.0, 1 - strength), 1 + strength
    grid = np.linspace(0, 3, 1201)
    options = np.stack([np.asarray(enhancer(PIL.Image.fromarray(image)).enhance(factor)) for factor in grid])
    distances = np.abs(options[None].astype(int) - found[:, None]).max(axis=(2, 3, 4))
    assert (distances.min(axis=1) <= 1).all()  # The grid is finer than a level.
    factors = grid[distances.argmin(axis=1)]
    assert factors.min() > lowest - 0.02 and factors.max() < highest + 0.02
    quarters = np.histogram(factors, bins=4, range=(lowest - 0.02, highest + 0.02))[0]
    assert np.abs(quarters - 100).max() < 5 * np.sqrt(400 * 3 / 16)


def test_the_order_of_the_changes_is_drawn():
    """Brightness after contrast is not contrast after brightness."""
    batch, jitter = images(1), ColorJitter(brightness=0.9, contrast=0.9)
    run = jax.jit(partial(jitter, normalization=NONE, num_classes=10))
    image = PIL.Image.fromarray(batch[0])
    seen = set()
    for seed in range(12):
        key = jax.random.key(seed)
        brightness, contrast = (
            float(jax.random.uniform(jax.random.split(key, 5)[place], (1,), minval=0.1, maxval=1.9)[0])
            for place in (1, 2)
        )
        found = np.asarray(run(key, {"image": batch})["image"])[0].astype(int)
        first = PIL.ImageEnhance.Brightness(image).enhance(brightness)
        bright = np.asarray(PIL.ImageEnhance.Contrast(first).enhance(contrast))
        first = PIL.ImageEnhance.Contrast(image).enhance(contrast)
        contrasting = np.asarray(PIL.ImageEnhance.Brightness(first).enhance(brightness))
        fits = [np.abs(found - option).max() <= 1 for option in (bright, contrasting)]
        assert any(fits)
        if fits != [True, True]:
            seen.add(fits[0])
    assert seen == {False, True}


def test_images_that_are_not_rgb_are_refused():
    with pytest.raises(UserError, match="color_jitter is for RGB"):
        jittered(ColorJitter(hue=0.1), images(2, channels=1), 0)
