import numpy as np
import pytest

from resnet_jax import recipes
from resnet_jax.data.resident import Dataset, Split, batch_indices, gather, load_dataset
from resnet_jax.errors import UserError


def digits_config(holdout=0, seed=0):
    config = recipes.digits_quickstart()
    config.data.holdout = holdout
    config.seed = seed
    return config


@pytest.mark.parametrize(("num_examples", "batch_size"), [(12, 4), (10, 3), (7, 7), (5, 12)])
def test_every_example_is_seen_exactly_once_a_pass(num_examples, batch_size):
    passes = 6
    steps = -(-passes * num_examples // batch_size)
    batches = [batch_indices(3, step, num_examples, batch_size) for step in range(steps)]
    assert {batch.shape for batch in batches} == {(batch_size,)}
    assert {batch.dtype for batch in batches} == {np.dtype(np.int32)}
    order = np.concatenate(batches)[: passes * num_examples].reshape(passes, num_examples)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(num_examples), (passes, 1)))


def test_batches_are_a_function_of_seed_and_step():
    steps = list(range(9))
    forward = {step: batch_indices(5, step, 100, 30) for step in steps}
    for step in reversed(steps):
        np.testing.assert_array_equal(batch_indices(5, step, 100, 30), forward[step])
    assert not np.array_equal(batch_indices(6, 0, 100, 30), forward[0])


def test_each_epoch_has_its_own_order():
    orders = [batch_indices(0, epoch, 100, 100).tolist() for epoch in range(4)]
    assert len({tuple(order) for order in orders}) == 4
    assert list(range(100)) not in orders


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


def test_an_unknown_data_set_names_the_known_ones():
    config = digits_config()
    config.data.name = "svhn"
    with pytest.raises(UserError, match=r"config\.data\.name is 'svhn'; it must be one of digits, cifar10, cifar100"):
        load_dataset(config)


def test_split_gives_each_part_by_name_and_refuses_an_absent_one():
    train, test = (Split(np.zeros((n, 2, 2, 3), np.uint8), np.zeros(n, np.int32)) for n in (3, 2))
    dataset = Dataset(train, None, test, num_classes=10)
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
