import numpy as np
import pytest
from sklearn.datasets import load_digits

from resnet_jax.data.sources import digits


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_are_the_grey_levels_of_scikit_learn_repeated_over_pixels_and_channels(split):
    images, labels = digits.load(split)
    assert images.shape == (len(labels), 32, 32, 3)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    corners = images[:, ::4, ::4, :1]
    np.testing.assert_array_equal(images, np.kron(corners, np.ones((1, 4, 4, 3), np.uint8)))

    reference = load_digits()
    by_pixels = {image.tobytes(): label for image, label in zip(reference.images, reference.target, strict=True)}
    levels = np.round(corners[..., 0] * (reference.images.max() / 255))
    assert [by_pixels[image.tobytes()] for image in levels] == labels.tolist()


def test_train_and_test_are_all_digits_once_and_hold_every_class():
    splits = [digits.load(split) for split in ("train", "test")]
    found = np.concatenate([images[:, ::4, ::4, 0] for images, _ in splits])
    expected = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    assert sorted(image.tobytes() for image in found) == sorted(image.tobytes() for image in expected)
    for _, labels in splits:
        assert set(labels.tolist()) == set(range(10))
    assert len(splits[1][1]) == digits.NUM_TEST


def test_the_split_is_the_same_every_time():
    for one, other in zip(digits.load("test"), digits.load("test"), strict=True):
        np.testing.assert_array_equal(one, other)
