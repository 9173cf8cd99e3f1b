from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import recipes
from resnet_jax.data.augment import augment, pca_color, random_crop, random_flip

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


# Principal components of ImageNet's colours (Krizhevsky et al., 2012): eigenvalues, and eigenvectors as columns.
PCA_VALUES = np.array([0.2175, 0.0188, 0.0045])
PCA_VECTORS = np.stack([(-0.5675, -0.5808, -0.5836), (0.7192, -0.0045, -0.6948), (0.4009, -0.8140, 0.4203)], axis=1)


@pytest.mark.parametrize("std", [0.1, 0.5])
def test_colours_shift_along_the_principal_components_each_by_a_normal_draw(std):
    count = 20_000
    shifts = np.asarray(pca_color(jax.random.key(4), count, std), np.float64)
    assert shifts.shape == (count, 1, 1, 3)
    # In the basis of the eigenvectors, where even the smallest component shows.
    draws = shifts[:, 0, 0] @ np.linalg.inv(PCA_VECTORS).T / (std * PCA_VALUES)
    np.testing.assert_allclose(draws.mean(axis=0), 0, atol=5 / np.sqrt(count))
    np.testing.assert_allclose(np.cov(draws.T), np.eye(3), atol=5 * np.sqrt(2 / count))
    # Of normal draws 68.27 % are within one standard deviation.
    np.testing.assert_allclose((np.abs(draws) < 1).mean(axis=0), 0.6827, atol=5 * np.sqrt(0.25 / count))


def augmented(key, images, std=(1, 1, 1), **settings):
    """With the settings of config.data given, and all others off."""
    config = recipes.base()
    config.data.update({"pad": 0, "flip": False, "pca_std": 0.0} | settings)
    return np.asarray(augment(config, jax.random.key(key), jnp.asarray(images), np.array(std, np.float32)))


def test_the_colour_shift_is_that_of_each_image_and_is_divided_by_std():
    images, std = random_images(500), (0.5, 0.25, 2.0)
    shifts = augmented(5, images, pca_std=0.1) - images
    of_image = shifts[:, :1, :1]
    np.testing.assert_allclose(shifts, np.broadcast_to(of_image, shifts.shape), atol=1e-6)
    # The first component dwarfs the others: the standard deviation of each channel is about 0.1 * 0.2175 * 0.58.
    np.testing.assert_allclose(of_image.std(axis=0), 0.0126, rtol=0.15)
    assert len(np.unique(of_image[..., 0])) > 450
    divided = augmented(5, images, std, pca_std=0.1) - images
    np.testing.assert_allclose(divided * np.array(std, np.float32), shifts, atol=2e-6)


def test_colour_shift_and_flip_are_drawn_independently():
    images = np.repeat(random_images(1), NUM_IMAGES, axis=0)
    views = augmented(6, images, pca_std=0.1, flip=True)
    brighter = views.mean(axis=(1, 2, 3)) > images.mean(axis=(1, 2, 3))
    # The slope along the row keeps its sign under a shift, and changes it under a flip.
    ramp = np.arange(images.shape[2])[:, None] - 2.0
    mirrored = np.sign((views * ramp).sum(axis=(1, 2, 3))) != np.sign((images * ramp).sum(axis=(1, 2, 3)))
    choices = [(b, m) for b in (False, True) for m in (False, True)]
    assert_about_uniform(Counter(zip(brighter.tolist(), mirrored.tolist(), strict=True)), choices)


def test_augment_draws_crop_and_flip_independently():
    images = np.repeat(random_images(1), NUM_IMAGES, axis=0)
    name_of = {}
    for corner, crop in crops(images[0], 1).items():
        name_of[crop.tobytes()] = (corner, "kept")
        name_of[crop[:, ::-1].tobytes()] = (corner, "mirrored")
    views = augmented(3, images, pad=1, flip=True)
    assert_about_uniform(Counter(name_of[view.tobytes()] for view in views), name_of.values())


@pytest.mark.parametrize("settings", [{"pad": 2}, {"flip": True}, {"pca_std": 0.1}])
def test_augment_is_a_function_of_the_key(settings):
    images = random_images(32)
    one, again, other = (augmented(key, images, **settings) for key in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_augment_with_all_off_changes_nothing():
    images = random_images(8)
    np.testing.assert_array_equal(augmented(0, images), images)


def test_augment_without_padding_still_flips():
    images = random_images(64)
    views = augmented(0, images, flip=True)
    changed = [not np.array_equal(view, image) for view, image in zip(views, images, strict=True)]
    assert any(changed) and not all(changed)
    for view, image in zip(views, images, strict=True):
        assert np.array_equal(view, image) or np.array_equal(view, image[:, ::-1])
