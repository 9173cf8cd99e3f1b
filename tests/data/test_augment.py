from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import recipes
from resnet_jax.data.augment import augment, normalization, normalize, random_crop, random_flip
from resnet_jax.data.resident import Split
from resnet_jax.errors import UserError

NUM_IMAGES = 1800


def random_images(count, height=4, width=5):
    return np.random.default_rng(0).normal(size=(count, height, width, 3)).astype(np.float32)


def crops(image, pad):
    """Every crop of a padded image, by its corner; the slow, obvious way."""
    height, width, channels = image.shape
    padded = np.zeros((height + 2 * pad, width + 2 * pad, channels), image.dtype)
    padded[pad : pad + height, pad : pad + width] = image
    corners = [(top, left) for top in range(2 * pad + 1) for left in range(2 * pad + 1)]
    return {(top, left): padded[top : top + height, left : left + width] for top, left in corners}


def assert_about_uniform(counts, choices):
    """Every choice occurs, and as often as it should: within five standard deviations of a binomial count."""
    total, p = sum(counts.values()), 1 / len(choices)
    assert set(counts) == set(choices)
    for choice in choices:
        assert abs(counts[choice] - total * p) < 5 * np.sqrt(total * p * (1 - p))


@pytest.fixture
def train_split():
    rng = np.random.default_rng(1)
    return Split(rng.integers(256, size=(7, 4, 5, 3), dtype=np.uint8), np.zeros(7, np.int32))


def test_per_pixel_mean_leaves_each_pixel_with_mean_zero(train_split):
    mean, std = normalization(recipes.base(), train_split)
    expected = train_split.images.astype(np.float64).sum(axis=0) / len(train_split) / 255
    assert mean.shape == (4, 5, 3)
    np.testing.assert_allclose(mean, expected, rtol=1e-6)
    normalized = normalize(jnp.asarray(train_split.images), mean, std)
    assert normalized.dtype == jnp.float32
    np.testing.assert_allclose(normalized, train_split.images / 255 - expected, atol=1e-6)
    np.testing.assert_allclose(normalized.mean(axis=0), 0, atol=1e-6)


def test_channel_normalization_uses_the_numbers_of_the_config(train_split):
    config = recipes.base()
    config.data.normalization = "channel"
    config.data.mean, config.data.std = (0.5, 0.25, 0.125), (0.5, 0.2, 0.1)
    mean, std = normalization(config, train_split)
    expected = np.stack(
        [(train_split.images[..., c] / 255 - config.data.mean[c]) / config.data.std[c] for c in range(3)], axis=-1
    )
    np.testing.assert_allclose(normalize(jnp.asarray(train_split.images), mean, std), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "value"),
    [("normalization", "per_image"), ("mean", (0.5,)), ("std", (0.5, 0.5)), ("std", (0.5, 0.0, 0.5))],
)
def test_a_wrong_normalization_is_refused_by_its_key(train_split, key, value):
    config = recipes.base()
    config.data.normalization = "channel"
    config.data[key] = value
    with pytest.raises(UserError, match=rf"config\.data\.{key} is "):
        normalization(config, train_split)


@pytest.mark.parametrize("pad", [1, 2])
def test_random_crop_gives_each_crop_of_the_padded_image_about_equally_often(pad):
    images = np.repeat(random_images(1), NUM_IMAGES, axis=0)
    corner_of = {crop.tobytes(): corner for corner, crop in crops(images[0], pad).items()}
    cropped = np.asarray(random_crop(jax.random.key(0), jnp.asarray(images), pad))
    assert cropped.shape == images.shape
    assert_about_uniform(Counter(corner_of[crop.tobytes()] for crop in cropped), corner_of.values())


def test_random_crop_cuts_each_output_from_its_own_image():
    images = random_images(32)
    for image, cropped in zip(images, np.asarray(random_crop(jax.random.key(1), images, 1)), strict=True):
        assert any(np.array_equal(cropped, crop) for crop in crops(image, 1).values())


def test_random_flip_mirrors_about_half_of_the_images_and_changes_nothing_else():
    images = random_images(NUM_IMAGES)
    flipped = np.asarray(random_flip(jax.random.key(2), jnp.asarray(images)))
    mirrored = np.array([np.array_equal(out, image[:, ::-1]) for out, image in zip(flipped, images, strict=True)])
    kept = np.array([np.array_equal(out, image) for out, image in zip(flipped, images, strict=True)])
    np.testing.assert_array_equal(mirrored, ~kept)
    assert_about_uniform(Counter(mirrored.tolist()), [False, True])


def test_augment_draws_crop_and_flip_independently():
    images = np.repeat(random_images(1), NUM_IMAGES, axis=0)
    name_of = {}
    for corner, crop in crops(images[0], 1).items():
        name_of[crop.tobytes()] = (corner, "kept")
        name_of[crop[:, ::-1].tobytes()] = (corner, "mirrored")
    views = np.asarray(augment(jax.random.key(3), jnp.asarray(images), pad=1, flip=True))
    assert_about_uniform(Counter(name_of[view.tobytes()] for view in views), name_of.values())


def test_augment_is_a_function_of_the_key():
    images = jnp.asarray(random_images(32))
    one, again, other = (augment(jax.random.key(seed), images, pad=2, flip=True) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_augment_without_padding_and_flip_changes_nothing():
    images = random_images(8)
    np.testing.assert_array_equal(augment(jax.random.key(0), jnp.asarray(images), pad=0, flip=False), images)


def test_augment_without_padding_still_flips():
    images = random_images(64)
    views = np.asarray(augment(jax.random.key(0), jnp.asarray(images), pad=0, flip=True))
    changed = [not np.array_equal(view, image) for view, image in zip(views, images, strict=True)]
    assert any(changed) and not all(changed)
    for view, image in zip(views, images, strict=True):
        assert np.array_equal(view, image) or np.array_equal(view, image[:, ::-1])
