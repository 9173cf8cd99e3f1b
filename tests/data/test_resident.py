import numpy as np
import pytest

from resnet_jax import recipes
from resnet_jax.data.resident import Dataset, Split, gather, load_dataset
from resnet_jax.errors import UserError


def digits_config(holdout=0, seed=0):
    config = recipes.digits_quickstart()
    config.data.holdout = holdout
    config.seed = seed
    return config


def test_holdout_takes_that_many_examples_out_of_the_training_set():
    whole, held = load_dataset(digits_config()), load_dataset(digits_config(holdout=100))
    assert whole.validation is None
    assert held.validation is not None
    assert (len(held.train), len(held.validation)) == (len(whole.train) - 100, 100)
    np.testing.assert_array_equal(held.test.images, whole.test.images)

    # Compared as a multiset with its labels, so that an example in both parts or in neither shows.
    def examples(*splits):
        return sorted((i.tobytes(), int(y)) for s in splits for i, y in zip(s.images, s.labels, strict=True))

    assert examples(held.train, held.validation) == examples(whole.train)
    # A random draw and not the first or last ones: digits come in any order already, so only the choice can show.
    for chosen in (whole.train.labels[:100], whole.train.labels[-100:]):
        assert not np.array_equal(held.validation.labels, chosen)


def test_the_held_out_examples_are_the_same_for_every_seed():
    one, other = (load_dataset(digits_config(holdout=50, seed=seed)).validation for seed in (0, 1))
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.labels, other.labels)


def test_a_holdout_of_the_whole_training_set_is_refused():
    size = len(load_dataset(digits_config()).train)
    with pytest.raises(UserError, match=rf"config\.data\.holdout is {size}; it must be from 0 to {size - 1}"):
        load_dataset(digits_config(holdout=size))


def test_digits_are_named_and_have_the_shape_of_an_image():
    dataset = load_dataset(digits_config())
    assert dataset.class_names == list("0123456789")
    assert dataset.image_shape == dataset.train.images[0].shape == dataset.test.images[0].shape
    assert set(dataset.train.labels.tolist()) == set(range(10))


def test_split_gives_each_part_by_name_and_refuses_an_absent_one():
    train, test = (Split(np.zeros((n, 2, 2, 3), np.uint8), np.zeros(n, np.int32)) for n in (3, 2))
    dataset = Dataset(train, None, test, class_names=[])
    assert dataset.split("train") is train
    assert dataset.split("test") is test
    for name in ("validation", "dev"):
        with pytest.raises(UserError, match=name):
            dataset.split(name)


def test_gather_takes_images_and_labels_at_the_indices():
    images = np.arange(5 * 2 * 2 * 3, dtype=np.uint8).reshape(5, 2, 2, 3)
    labels = np.arange(5, dtype=np.int32) * 10
    batch = gather(Split(images, labels), np.array([4, 0, 4]))
    np.testing.assert_array_equal(batch["image"], [images[4], images[0], images[4]])
    np.testing.assert_array_equal(batch["label"], [40, 0, 40])


def test_gather_gives_label_minus_1_where_there_is_no_example():
    split = Split(np.zeros((3, 2, 2, 3), np.uint8), np.array([7, 8, 9], np.int32))
    batch = gather(split, np.array([2, -1, 0, -1], np.int32))
    np.testing.assert_array_equal(batch["label"], np.array([9, -1, 7, -1], np.int32), strict=True)
    assert batch["image"].shape == (4, 2, 2, 3)
