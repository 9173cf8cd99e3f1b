from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from resnet_jax.data.normalization import Normalization
from resnet_jax.data.transforms import Flip, PcaColor, RandomCrop, Transforms
from resnet_jax.data.transforms.streams import stream
from resnet_jax.data.transforms.transform import Transform
from resnet_jax.errors import UserError

NUM_IMAGES = 1800


def random_images(count, height=4, width=5):
    return np.random.default_rng(0).normal(size=(count, height, width, 3)).astype(np.float32)


class Done(Normalization):
    """Of images that are normalised already."""

    def __call__(self, images):
        return images


def normalization(std=(1, 1, 1)):
    return Done(np.zeros(len(std), np.float32), np.array(std, np.float32))


def transformed(transform, key, images, std=(1, 1, 1)):
    """By one transform alone."""
    return np.asarray(transform(jax.random.key(key), {"image": jnp.asarray(images)}, normalization(std), 10)["image"])


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
    cropped = transformed(RandomCrop(pad=pad), 0, images)
    assert cropped.shape == images.shape
    assert_about_uniform(Counter(corner_of[crop.tobytes()] for crop in cropped), corner_of.values())


def test_random_crop_cuts_each_output_from_its_own_image():
    images = random_images(32)
    for image, cropped in zip(images, transformed(RandomCrop(pad=1), 1, images), strict=True):
        assert any(np.array_equal(cropped, crop) for crop in crops(image, 1).values())


def test_random_flip_mirrors_about_half_of_the_images_and_changes_nothing_else():
    images = random_images(NUM_IMAGES)
    flipped = transformed(Flip(probability=0.5), 2, images)
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
    shifts = np.asarray(PcaColor(std=std).shifts(jax.random.key(4), count), np.float64)
    assert shifts.shape == (count, 1, 1, 3)
    # In the basis of the eigenvectors, where even the smallest component shows.
    draws = shifts[:, 0, 0] @ np.linalg.inv(PCA_VECTORS).T / (std * PCA_VALUES)
    np.testing.assert_allclose(draws.mean(axis=0), 0, atol=5 / np.sqrt(count))
    np.testing.assert_allclose(np.cov(draws.T), np.eye(3), atol=5 * np.sqrt(2 / count))
    # Of normal draws 68.27 % are within one standard deviation.
    np.testing.assert_allclose((np.abs(draws) < 1).mean(axis=0), 0.6827, atol=5 * np.sqrt(0.25 / count))


def augmented(key, images, std=(1, 1, 1), pad=0, flip=False, pca_std=0.0):
    """By all that are given."""
    transforms = Transforms(
        pca_color=PcaColor(std=pca_std), random_crop=RandomCrop(pad=pad), flip=Flip(probability=0.5 if flip else 0.0)
    )
    batch = {"image": jnp.asarray(images)}
    return np.asarray(transforms.apply(jax.random.key(key), batch, normalization(std), 10)["image"])


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


def test_crop_and_flip_are_drawn_independently():
    images = np.repeat(random_images(1), NUM_IMAGES, axis=0)
    name_of = {}
    for corner, crop in crops(images[0], 1).items():
        name_of[crop.tobytes()] = (corner, "kept")
        name_of[crop[:, ::-1].tobytes()] = (corner, "mirrored")
    views = augmented(3, images, pad=1, flip=True)
    assert_about_uniform(Counter(name_of[view.tobytes()] for view in views), name_of.values())


@pytest.mark.parametrize("settings", [{"pad": 2}, {"flip": True}, {"pca_std": 0.1}])
def test_a_transformed_batch_is_a_function_of_the_key(settings):
    images = random_images(32)
    one, again, other = (augmented(key, images, **settings) for key in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_all_off_changes_nothing():
    images = random_images(8)
    np.testing.assert_array_equal(augmented(0, images), images)


def test_without_padding_there_is_still_a_flip():
    images = random_images(64)
    views = augmented(0, images, flip=True)
    changed = [not np.array_equal(view, image) for view, image in zip(views, images, strict=True)]
    assert any(changed) and not all(changed)
    for view, image in zip(views, images, strict=True):
        assert np.array_equal(view, image) or np.array_equal(view, image[:, ::-1])


NORMALIZATION = Normalization(np.array([0.3, 0.4, 0.5], np.float32), np.array([0.2, 0.25, 0.5], np.float32))


def uint8_images(count, height=6, width=5):
    return np.random.default_rng(1).integers(256, size=(count, height, width, 3), dtype=np.uint8)


def test_the_order_is_colour_crop_and_flip_of_normalised_images_each_with_its_own_stream():
    """By hand, as it was before there were parts: these draws must not change."""
    images, key = uint8_images(16), jax.random.key(9)
    crop_key, flip_key = jax.random.split(key)
    expected = NORMALIZATION(jnp.asarray(images))
    expected = expected + PcaColor(std=0.1).shifts(jax.random.fold_in(key, 2), 16) / NORMALIZATION.std
    padded = np.pad(np.asarray(expected), ((0, 0), (2, 2), (2, 2), (0, 0)))
    corners = np.asarray(jax.random.randint(crop_key, (16, 2), 0, 5))
    cropped = [image[top : top + 6, left : left + 5] for image, (top, left) in zip(padded, corners, strict=True)]
    flips = np.asarray(jax.random.bernoulli(flip_key, shape=(16, 1, 1, 1))).ravel()
    expected = [image[:, ::-1] if flip else image for image, flip in zip(cropped, flips, strict=True)]
    transforms = Transforms(pca_color=PcaColor(std=0.1), random_crop=RandomCrop(pad=2), flip=Flip(probability=0.5))
    batch = transforms.apply(key, {"image": jnp.asarray(images), "label": np.arange(16)}, NORMALIZATION, 10)
    np.testing.assert_array_equal(batch["image"], expected)
    np.testing.assert_array_equal(batch["label"], np.arange(16))


@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_a_flip_has_its_probability(probability):
    images = random_images(NUM_IMAGES)
    flipped = transformed(Flip(probability=probability), 0, images)
    share = np.mean([np.array_equal(out, image[:, ::-1]) for out, image in zip(flipped, images, strict=True)])
    assert abs(share - probability) <= 5 * np.sqrt(probability * (1 - probability) / NUM_IMAGES)


def test_streams_of_other_names_differ_from_each_other():
    key = jax.random.key(0)
    names = ["pca_color", "random_crop", "flip", "mixup", "random_erasing"]
    assert len({tuple(np.asarray(jax.random.key_data(stream(key, name)))) for name in names}) == len(names)


class Invert(Transform):
    before_normalization = True
    amount: int = 0
    strength: int = 1

    @property
    def on(self):
        return self.amount > 0

    def __call__(self, key, batch, normalization, num_classes):
        assert batch["image"].dtype == jnp.uint8
        return batch | {"image": 255 - batch["image"]}


class Mix(Transform):
    alpha: float = 0.0

    @property
    def on(self):
        return self.alpha > 0

    def __call__(self, key, batch, normalization, num_classes):
        share = jax.random.uniform(key, (len(batch["image"]), 1))
        target = batch.get("target", jax.nn.one_hot(batch["label"], num_classes))
        return batch | {"target": share * target + (1 - share) * target[::-1]}


class More(Transforms):
    invert: Invert = Invert()
    mix: Mix = Mix()


def test_another_transform_is_a_class_and_a_field_and_changes_no_draw_of_the_others():
    images, key = uint8_images(8), jax.random.key(3)
    batch = {"image": images, "label": np.arange(8) % 4}
    flip = Flip(probability=0.5)
    found = More(flip=flip, invert=Invert(amount=1), mix=Mix(alpha=0.2)).apply(key, batch, NORMALIZATION, 4)
    expected = Transforms(flip=flip).apply(key, batch | {"image": 255 - images}, NORMALIZATION, 4)
    np.testing.assert_array_equal(found["image"], expected["image"])
    assert found["target"].shape == (8, 4)
    np.testing.assert_allclose(found["target"].sum(axis=1), 1, rtol=1e-6)
    assert "target" not in expected


def test_what_is_set_of_a_transform_that_is_off_is_refused():
    with pytest.raises(ValidationError, match=r"invert\.strength is set but not read, because invert is off"):
        More(invert=Invert(strength=2))
    assert More(invert=Invert(strength=2, amount=1)).invert.strength == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"flip": {"probability": 1.5}},
        {"flip": {"probability": -0.1}},
        {"random_crop": {"pad": -1}},
        {"random_crop": {"pad": 1.0}},
        {"pca_color": {"std": -1.0}},
        {"mixup": {}},
        {"mixing": {"mixup_alpha": 0.2, "switch_probability": 0.9}},
        {"rand_augment": {"layers": 2, "magnitude": 15, "bins": 11}},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValidationError):
        Transforms.model_validate(settings)


def test_colour_shifts_are_refused_where_images_are_not_rgb():
    grey = {"image": np.zeros((2, 4, 4, 1), np.uint8), "label": np.zeros(2)}
    transforms = Transforms(pca_color=PcaColor(std=0.1))
    with pytest.raises(UserError, match=r"config\.transforms\.pca_color is for RGB, and the images have 1 channels"):
        transforms.apply(jax.random.key(0), grey, Normalization(np.zeros(1), np.ones(1)), 10)


def test_a_transform_that_changes_the_type_or_shape_of_images_is_named():
    class Wrong(Flip):
        before_normalization = True

        def __call__(self, key, batch, normalization, num_classes):
            return batch | {"image": batch["image"].astype(jnp.int32)}

    transforms = Transforms().model_copy(update={"flip": Wrong(probability=0.5)})
    batch = {"image": np.zeros((2, 8, 8, 3), np.uint8), "label": np.zeros(2, np.int32)}
    with pytest.raises(TypeError, match=r"transform flip gives images of int32 \(2, 8, 8, 3\) for uint8"):
        transforms.apply(jax.random.key(0), batch, NORMALIZATION, 10)
