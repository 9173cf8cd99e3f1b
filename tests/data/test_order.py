import numpy as np
import pytest

from resnet_jax.data.order import GroupedOrder, example_indices


@pytest.mark.parametrize(("num_examples", "batch_size"), [(12, 4), (10, 3), (7, 7), (5, 12), (1, 3)])
def test_every_example_is_seen_exactly_once_a_pass(num_examples, batch_size):
    passes = 6
    steps = -(-passes * num_examples // batch_size)
    places = np.arange(steps * batch_size).reshape(steps, batch_size)
    batches = [example_indices(3, place, num_examples) for place in places]
    assert {batch.shape for batch in batches} == {(batch_size,)}
    assert {batch.dtype for batch in batches} == {np.dtype(np.int32)}
    order = np.concatenate(batches)[: passes * num_examples].reshape(passes, num_examples)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(num_examples), (passes, 1)))


def test_indices_are_a_function_of_the_seed_and_the_place():
    places = np.arange(350)
    whole = example_indices(5, places, 100)
    # One at a time, backwards and from far apart: nothing depends on what was asked before.
    for place in reversed(range(0, 350, 7)):
        assert example_indices(5, np.array([place]), 100) == [whole[place]]
    shuffled = np.random.default_rng(0).permutation(places)
    np.testing.assert_array_equal(example_indices(5, shuffled, 100), whole[shuffled])
    assert not np.array_equal(example_indices(6, places, 100), whole)


def test_each_pass_of_each_seed_has_its_own_order():
    orders = np.concatenate([example_indices(seed, np.arange(400), 100).reshape(4, 100) for seed in range(3)]).tolist()
    assert len({tuple(order) for order in orders}) == 12
    assert list(range(100)) not in orders


@pytest.mark.parametrize(("num_examples", "batch_size", "repeats"), [(24, 8, 4), (30, 8, 3), (7, 12, 3)])
def test_repeated_augmentation_shows_each_of_a_pass_s_first_examples_several_times(num_examples, batch_size, repeats):
    """As DeiT's and torchvision's samplers: the shuffled order repeated, up to as many as there are examples."""
    steps = 2 * num_examples
    places = np.arange(steps * batch_size).reshape(steps, batch_size)
    batches = [example_indices(4, place, num_examples, repeats, batch_size) for place in places]
    plain = example_indices(4, np.arange(steps * batch_size), num_examples)
    passes = [plain[start : start + num_examples] for start in range(0, len(plain), num_examples)]
    stream = np.concatenate([np.repeat(order, repeats)[:num_examples] for order in passes])
    for batch, start in zip(batches, range(0, len(stream), batch_size), strict=False):
        np.testing.assert_array_equal(np.sort(batch), np.sort(stream[start : start + batch_size]))


def test_copies_of_an_example_are_not_in_one_group_of_batch_normalisation():
    for step in range(6):
        batch = example_indices(5, np.arange(step * 32, step * 32 + 32), 64, repeats=4, batch_size=32)
        assert len(np.unique(batch)) == 8
        for group in batch.reshape(4, 8):
            assert len(np.unique(group)) == 8


def test_repeated_places_can_be_asked_for_in_parts():
    """As threads and hosts do."""
    whole = example_indices(5, np.arange(64, 96), 40, repeats=3, batch_size=32)
    parts = [example_indices(5, np.arange(64 + i, 64 + i + 8), 40, repeats=3, batch_size=32) for i in range(0, 32, 8)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("shape", [(), (0,), (60,), (3, 20), (5, 3, 4)])
def test_places_may_have_any_shape(shape):
    places = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    indices = example_indices(1, places, 25)
    assert indices.shape == shape and indices.dtype == np.int32
    flat = [int(example_indices(1, np.array([place]), 25)[0]) for place in places.flat]
    np.testing.assert_array_equal(indices.ravel(), flat)


def walked(seed, batch_size, groups, steps):
    """Batches as a loader makes them that walks the stream and puts each example into its group's bucket."""
    buckets, batches, position = {group: [] for group in groups}, [], 0
    while len(batches) < steps:
        (example,) = example_indices(seed, np.array([position]), len(groups))
        bucket = buckets[groups[example]]
        bucket.append(int(example))
        position += 1
        if len(bucket) == batch_size:
            batches.append((groups[example], list(bucket)))
            bucket.clear()
    return batches


@pytest.mark.parametrize(
    ("counts", "batch_size"), [((7, 5), 4), ((12, 4), 4), ((20, 1), 3), ((2, 3), 4), ((1, 1), 5), ((6, 5, 4), 2)]
)
def test_batches_of_groups_are_those_of_buckets_that_fill_up(counts, batch_size):
    groups = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int32)
    order = GroupedOrder(3, batch_size, groups)
    expected = walked(3, batch_size, groups.tolist(), 40)
    for step in (*range(40), 5, 0, 39):  # Whatever was asked before.
        group, examples = order.batch(step)
        assert (group, examples.tolist()) == expected[step] and examples.dtype == np.int32
    again = GroupedOrder(3, batch_size, groups)
    assert again.batch(39)[1].tolist() == expected[39][1]
    assert any(GroupedOrder(4, batch_size, groups).batch(step)[1].tolist() != expected[step][1] for step in range(40))


@pytest.mark.parametrize(("counts", "batch_size"), [((11, 6), 4), ((5, 30), 7)])
def test_every_example_of_each_group_is_seen_once_a_pass(counts, batch_size):
    groups = np.repeat(np.arange(len(counts)), counts)
    order = GroupedOrder(0, batch_size, groups)
    streams = [[] for _ in counts]
    for step in range(60):
        group, examples = order.batch(step)
        streams[group] += examples.tolist()
    for group, count in enumerate(counts):
        whole = len(streams[group]) // count
        assert whole >= 3
        for epoch in np.array(streams[group][: whole * count]).reshape(whole, count):
            np.testing.assert_array_equal(np.sort(epoch), np.flatnonzero(groups == group))


def test_with_one_group_the_batches_are_those_without_groups():
    order = GroupedOrder(5, 6, np.zeros(10, int))
    found = np.stack([order.batch(step)[1] for step in range(20)])
    np.testing.assert_array_equal(found, example_indices(5, np.arange(120).reshape(20, 6), 10))
