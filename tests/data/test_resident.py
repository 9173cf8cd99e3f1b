import numpy as np
import pytest
from pydantic import ValidationError

from resnet_jax.data import Resident, resident
from resnet_jax.data.dataset import Share
from resnet_jax.data.order import example_indices
from resnet_jax.data.resident import ResidentDataset
from resnet_jax.data.sources.protocol import Images, Split
from resnet_jax.errors import UserError


@pytest.fixture(scope="module")
def digits():
    return Resident(name="digits").load()


def arrays(count=7, shape=(4, 5, 3), classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(256, size=(count, *shape), dtype=np.uint8), rng.integers(classes, size=count)


def in_memory(shape=(4, 5, 3), **more):
    return ResidentDataset.from_arrays(*arrays(20, shape), *arrays(6, shape, seed=1), **more)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (6, 6, 4)])
def test_arrays_in_memory_are_a_data_set(shape):
    data = in_memory(shape)
    assert data.image_shape == (shape if len(shape) == 3 else (*shape, 1))
    assert (data.num_train, data.count("test"), data.evaluation_split, data.test_split) == (20, 6, "test", "test")
    assert (data.name, data.class_names) == ("arrays", ["0", "1", "2"])
    images, labels = arrays(20, shape)
    np.testing.assert_array_equal(data.resident("train").images.reshape(images.shape), images)
    np.testing.assert_array_equal(data.resident("train").labels, labels.astype(np.int32), strict=True)
    assert data.crop_size == min(shape[:2])
    assert data.example_name("test", 4) == "test[4]"


def test_classes_may_have_names_and_more_than_occur():
    data = in_memory(class_names=["ant", "bee", "cat", "dog"], name="pets")
    assert (data.name, data.class_names) == ("pets", ["ant", "bee", "cat", "dog"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": np.zeros((20, 4, 5, 3), np.float32)}, "images of pets train are float32 .*must be uint8"),
        ({"test_images": np.zeros((6, 4), np.uint8)}, "images of pets test are uint8 of shape"),
        ({"test_images": np.zeros((6, 5, 4, 3), np.uint8)}, "images of pets test have the shape"),
        ({"train_labels": np.zeros(19, int)}, r"labels of pets train have the shape \(19,\)"),
        ({"train_labels": np.zeros(20)}, "labels of pets train must be integers from 0"),
        ({"train_labels": np.full(20, -1)}, "labels of pets train must be integers from 0"),
        ({"class_names": ["ant", "bee"]}, "label 2 of pets train has no class name; there are 2"),
        ({"test_images": np.zeros((0, 4, 5, 3), np.uint8), "test_labels": np.zeros(0, int)}, "no images of pets test"),
    ],
)
def test_other_arrays_are_a_user_error(change, message):
    given = dict(
        zip(("train_images", "train_labels", "test_images", "test_labels"), arrays(20) + arrays(6), strict=True)
    )
    with pytest.raises(UserError, match=message) as caught:
        ResidentDataset.from_arrays(**given | {"name": "pets"} | change)
    assert "\n" not in str(caught.value)


def test_digits_are_named_and_have_the_shape_of_an_image(digits):
    assert (digits.name, digits.class_names) == ("digits", list("0123456789"))
    assert digits.image_shape == digits.resident("train").images[0].shape == digits.resident("test").images[0].shape
    assert (digits.num_train, digits.count("test")) == (1437, 360)


def test_holdout_takes_that_many_examples_out_of_the_training_set(digits):
    held = Resident(name="digits", holdout=100).load()
    assert digits.evaluation_split == "test"
    assert (held.evaluation_split, held.test_split) == ("validation", "test")
    assert (held.num_train, held.count("validation")) == (digits.num_train - 100, 100)
    np.testing.assert_array_equal(held.resident("test").images, digits.resident("test").images)

    # Compared as a multiset with its labels, so that an example in both parts or in neither shows.
    def examples(*splits):
        return sorted((i.tobytes(), int(y)) for s in splits for i, y in zip(s.images, s.labels, strict=True))

    whole = digits.resident("train")
    assert examples(held.resident("train"), held.resident("validation")) == examples(whole)
    # A random draw and not the first or last ones: digits come in any order already, so only the choice can show.
    for chosen in (whole.labels[:100], whole.labels[-100:]):
        assert not np.array_equal(held.resident("validation").labels, chosen)
    # The same ones each time.
    np.testing.assert_array_equal(
        digits.hold_out(100).resident("validation").images, held.resident("validation").images
    )


def test_what_is_held_out_keeps_its_order_and_is_pinned():
    """Another draw would mix training and validation examples of runs that are resumed."""
    labels = np.arange(10)
    images = np.zeros((10, 2, 2, 3), np.uint8)
    data = ResidentDataset.from_arrays(images, labels, images, labels).hold_out(3)
    assert data.resident("validation").labels.tolist() == [2, 4, 6]
    assert data.resident("train").labels.tolist() == [0, 1, 3, 5, 7, 8, 9]


@pytest.mark.parametrize("count", [20, 21])
def test_a_holdout_of_the_whole_training_set_is_refused(count):
    with pytest.raises(UserError, match=rf"config\.data\.holdout is {count}; it must be from 0 to 19"):
        in_memory().hold_out(count)


def test_a_holdout_is_refused_where_there_is_a_validation_split():
    with pytest.raises(UserError, match="has a validation split of its own; use 0"):
        in_memory().hold_out(3).hold_out(3)


def test_a_data_set_of_a_training_split_alone_gets_the_other_by_a_holdout(monkeypatch):
    images = Images({"train": Split(*arrays(20))}, ["a", "b", "c"])
    monkeypatch.setattr(resident, "load_images", lambda name, data_dir: images)
    held = Resident(name="some", holdout=5).load()
    assert (held.num_train, held.count("validation"), held.test_split) == (15, 5, "validation")
    with pytest.raises(UserError, match=r"config\.data\.holdout makes one of a part of train"):
        Resident(name="some").load()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((6, 4, 5, 3), np.float32), np.zeros(6, int), "images of digits test are float32"),
        (np.zeros((6, 4, 5, 3), np.uint8), np.full(6, -1), "labels of digits test must be integers from 0"),
        (np.zeros((6, 4, 5, 3), np.uint8), np.zeros(5, int), "labels of digits test have the shape"),
        (np.zeros((6, 4, 5, 3), np.uint8), np.full(6, 3), "label 3 of digits test has no class name; there are 3"),
    ],
)
def test_what_a_source_gives_is_checked_as_arrays_are(monkeypatch, images, labels, message):
    splits = {"train": Split(*arrays(20)), "test": Split(images, labels)}
    monkeypatch.setattr(resident, "load_images", lambda name, data_dir: Images(splits, ["a", "b", "c"]))
    with pytest.raises(UserError, match=message):
        Resident(name="digits").load()


def test_a_test_split_beside_a_validation_split_may_have_no_labels(monkeypatch):
    images, labels = arrays(20)
    splits = {
        "train": Split(images, labels),
        "validation": Split(images, labels),
        "test": Split(images, labels * 0 - 1),
    }
    monkeypatch.setattr(resident, "load_images", lambda name, data_dir: Images(splits, ["a", "b", "c"]))
    assert Resident(name="some").load().evaluation_split == "validation"
    monkeypatch.setattr(resident, "load_images", lambda name, data_dir: Images(splits, []))
    with pytest.raises(UserError, match="has no class name; there are 0"):
        Resident(name="some").load()


def test_photographs_are_seen_as_squares_only():
    assert Resident().look((28, 28, 1)).resized(60, 80) == (28, 28)
    with pytest.raises(UserError, match="the network's images are 28 x 40; photographs are only predicted as squares"):
        Resident().look((28, 40, 1))


def test_a_validation_split_is_scored_where_there_is_no_test_split():
    train, other = Split(*arrays(5)), Split(*arrays(3))
    data = ResidentDataset("set", {"train": train, "validation": other}, ["a", "b", "c"])
    assert data.evaluation_split == data.test_split == "validation"
    with pytest.raises(UserError, match="'set' has the splits train; it must have train, and test or validation"):
        ResidentDataset("set", {"train": train}, ["a", "b", "c"])


@pytest.mark.parametrize("split", ["validation", "dev"])
def test_an_absent_split_is_a_user_error_that_names_those_there_are(digits, split):
    hint = ", or set config.data.holdout" if split == "validation" else ""
    with pytest.raises(UserError, match=rf"^digits has no split '{split}'; use train or test{hint}$"):
        digits.count(split)


def test_gather_takes_images_and_labels_at_the_indices():
    images = np.arange(5 * 2 * 2 * 3, dtype=np.uint8).reshape(5, 2, 2, 3)
    labels = np.arange(5, dtype=np.int32) * 10
    data = in_memory()
    indices = np.array([4, 0, 4])
    batch = data.gather(Split(images, labels), {"index": indices})
    np.testing.assert_array_equal(batch["image"], [images[4], images[0], images[4]])
    np.testing.assert_array_equal(batch["label"], [40, 0, 40])
    np.testing.assert_array_equal(batch["index"], indices)


def test_gather_gives_label_minus_1_where_there_is_no_example():
    split = Split(np.zeros((3, 2, 2, 3), np.uint8), np.array([7, 8, 9], np.int32))
    batch = in_memory().gather(split, {"index": np.array([2, -1, 0, -1], np.int32)})
    np.testing.assert_array_equal(batch["label"], np.array([9, -1, 7, -1], np.int32), strict=True)
    assert batch["image"].shape == (4, 2, 2, 3)


@pytest.mark.parametrize("processes", [1, 4])
def test_training_batches_are_the_shuffled_stream_in_equal_parts(processes):
    parts = [
        [batch["index"] for batch in in_memory().training_batches(3, 8, 2, 7, Share(i, processes))]
        for i in range(processes)
    ]
    found = np.concatenate([np.concatenate(batch) for batch in zip(*parts, strict=True)])
    np.testing.assert_array_equal(found, example_indices(3, np.arange(16, 56), 20))


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("batch_size", "steps"), [(2, 3), (4, 2), (8, 1)])
def test_evaluation_shows_each_example_once_and_pads_with_minus_1(batch_size, steps, processes):
    data = in_memory()
    view = data.single_view("test")
    assert (view.count, view.canvas) == (6, (4, 5))
    parts = [
        [batch["index"] for batch in data.evaluation_batches("test", view, batch_size, Share(i, processes))]
        for i in range(processes)
    ]
    found = np.concatenate([np.concatenate(batch) for batch in zip(*parts, strict=True)])
    assert found.tolist() == [*range(6), *[-1] * (steps * batch_size - 6)]
    assert found.dtype == np.int32


def test_views_of_photographs_are_refused_for_small_images(digits):
    for make in (lambda: digits.square_view("test"), lambda: digits.whole_views("test", 224)):
        with pytest.raises(UserError, match="are for photographs; score digits with --protocol=single"):
            make()


@pytest.mark.parametrize("shape", [(4, 5, 3), (4, 5)])
def test_the_mean_image_is_that_of_the_training_split(shape):
    mean = in_memory(shape).mean_image()
    images = arrays(20, shape)[0].reshape(20, 4, 5, -1)
    assert mean.dtype == np.float64
    np.testing.assert_allclose(mean, images.astype(np.float64).sum(axis=0) / 20 / 255, rtol=1e-12)


@pytest.mark.parametrize("shape", [(4, 5, 3), (4, 5)])
def test_channel_statistics_are_those_of_the_training_images(shape):
    images = arrays(20, shape)[0].reshape(20, 4, 5, -1) / 255
    mean, std = in_memory(shape).channel_statistics()
    np.testing.assert_allclose(mean, images.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, images.std(axis=(0, 1, 2)), rtol=1e-12)


def test_known_channel_statistics_are_taken_by_name_where_they_fit(digits):
    pixels = digits.resident("train").images.reshape(-1, 3) / 255
    mean, std = digits.channel_statistics()
    assert mean == (0.305, 0.305, 0.305)
    np.testing.assert_allclose(mean, pixels.mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(std, pixels.std(axis=0), atol=1e-3)
    assert len(in_memory((4, 5), name="cifar10").channel_statistics()[0]) == 1


@pytest.mark.parametrize("name", ["folder", "packed"])
def test_a_name_of_photographs_is_a_user_error_that_names_the_kind(name):
    with pytest.raises(UserError, match=rf"^config\.data\.name is '{name}', .* set config\.data\.kind=photographs$"):
        Resident(name=name).load("/nowhere")


@pytest.mark.parametrize("setting", [{"holdout": -1}, {"holdout": 1.0}, {"crop_size": 3}, {"kind": "photographs"}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValidationError):
        Resident(**setting)
