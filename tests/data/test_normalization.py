import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from resnet_jax.data.normalization import AnyNormalization, Channel, Normalization, PerPixelMean
from resnet_jax.data.resident import ResidentDataset
from resnet_jax.data.sources.tfds import open_builder, open_split
from resnet_jax.errors import UserError


def dataset(channels=3, name="arrays"):
    rng = np.random.default_rng(1)
    train = rng.integers(256, size=(7, 4, 5, channels), dtype=np.uint8)
    other = np.full((2, 4, 5, channels), 255, np.uint8)  # Of another mean.
    return ResidentDataset.from_arrays(train, np.zeros(7, int), other, np.zeros(2, int), name=name)


@pytest.mark.parametrize("channels", [1, 3])
def test_per_pixel_mean_leaves_each_pixel_with_mean_zero(channels):
    data = dataset(channels)
    images = data.resident("train").images
    normalize = PerPixelMean().make(data)
    expected = images.astype(np.float64).sum(axis=0) / len(images) / 255
    assert normalize.mean.shape == (4, 5, channels)
    assert normalize.mean.dtype == normalize.std.dtype == np.float32
    np.testing.assert_allclose(normalize.mean, expected, rtol=1e-6)
    np.testing.assert_array_equal(normalize.std, [1] * channels)
    normalized = normalize(jnp.asarray(images))
    assert normalized.dtype == jnp.float32
    np.testing.assert_allclose(normalized, images / 255 - expected, atol=1e-6)
    np.testing.assert_allclose(normalized.mean(axis=0), 0, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 6, 6, 3), (2, 5, 4, 3), (2, 1, 1, 3), (2, 4, 5, 1)])
def test_a_mean_image_is_refused_for_images_of_another_size(shape):
    normalize = Normalization(np.zeros((4, 5, 3), np.float32), np.ones(3, np.float32))
    for call in (normalize, jax.jit(lambda images: normalize(images))):
        with pytest.raises(UserError, match=r"mean image .* has the shape \(4, 5, 3\) and the images have") as caught:
            call(np.zeros(shape, np.uint8))
        assert "\n" not in str(caught.value)


def test_whole_images_of_any_size_get_the_mean_over_all_pixels_of_a_mean_image():
    rng = np.random.default_rng(2)
    normalize = Normalization(rng.random((4, 5, 3), np.float32), np.array([1, 0.5, 2], np.float32))
    colour = normalize.mean.astype(np.float64).sum(axis=(0, 1)) / 20
    for shape in [(2, 6, 6, 3), (2, 5, 4, 3), (2, 1, 1, 3)]:
        images = rng.integers(256, size=shape, dtype=np.uint8)
        expected = (images / 255 - colour) / normalize.std
        np.testing.assert_allclose(normalize.whole(jnp.asarray(images)), expected, atol=1e-6)
    images = rng.integers(256, size=(2, 4, 5, 3), dtype=np.uint8)
    expected = (images / 255 - normalize.mean) / normalize.std
    for call in (normalize, normalize.whole):  # One that fits is subtracted as it is.
        np.testing.assert_allclose(call(jnp.asarray(images)), expected, atol=1e-6)
    channel = Normalization(np.full(3, 0.5, np.float32), np.ones(3, np.float32))
    np.testing.assert_array_equal(channel.whole(jnp.asarray(images)), channel(jnp.asarray(images)))


def test_a_given_mean_and_std_need_no_entry_of_a_table_and_no_statistics(monkeypatch):
    data = dataset(name="something new")
    monkeypatch.delattr(ResidentDataset, "channel_statistics")
    mean, std = (0.5, 0.25, 0.125), (0.5, 0.2, 0.1)
    normalize = Channel(mean=mean, std=std).make(data)
    images = data.resident("train").images
    expected = np.stack([(images[..., c] / 255 - mean[c]) / std[c] for c in range(3)], axis=-1)
    np.testing.assert_allclose(normalize(jnp.asarray(images)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_where_none_are_given_they_are_those_of_the_data_set(channels):
    data = dataset(channels)
    images = data.resident("train").images / 255
    normalize = Channel().make(data)
    assert normalize.mean.dtype == normalize.std.dtype == np.float32
    np.testing.assert_allclose(normalize.mean, images.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(normalize.std, images.std(axis=(0, 1, 2)), rtol=1e-6)
    # Either alone may be given.
    given = Channel(mean=(0.25,) * channels).make(data)
    np.testing.assert_array_equal(given.mean, [0.25] * channels)
    np.testing.assert_array_equal(given.std, normalize.std)


def test_what_a_name_alone_tells_needs_no_data():
    imagenet = Channel().fixed("imagenet2012")
    np.testing.assert_allclose(imagenet.mean, [0.485, 0.456, 0.406])
    np.testing.assert_allclose(imagenet.std, [0.229, 0.224, 0.225])
    given = Channel(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0)).fixed("something new")
    np.testing.assert_allclose(given.mean, [0.1, 0.2, 0.3])
    grey = Channel(mean=(0.1307,), std=(0.3081,)).fixed("mnist")
    np.testing.assert_allclose((*grey.mean, *grey.std), [0.1307, 0.3081])
    assert Channel().fixed("something new") is None
    assert Channel(mean=(0.1, 0.2, 0.3)).fixed("something new") is None
    assert PerPixelMean().fixed("imagenet2012") is None


def test_the_numbers_of_cifar10_are_its(prepared_tfds):
    source = open_split(open_builder("cifar10", str(prepared_tfds)), "train")
    images = np.stack([source[i]["image"] for i in range(0, len(source), 40)])
    normalize = Channel().fixed("cifar10")
    # Those of a fortieth of the images; of CIFAR-100 they are further off.
    np.testing.assert_allclose(normalize.mean, images.mean(axis=(0, 1, 2)) / 255, atol=0.01)
    np.testing.assert_allclose(normalize.std, images.std(axis=(0, 1, 2)) / 255, atol=0.01)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"mean": (0.5,)}, r"config\.normalization\.mean has 1 values and the images have 3 channels"),
        ({"std": (0.5, 0.5)}, r"config\.normalization\.std has 2 values and the images have 3 channels"),
    ],
)
def test_another_number_of_values_than_of_channels_is_refused_by_its_key(setting, message):
    with pytest.raises(UserError, match=message):
        Channel(**setting).make(dataset())


def test_training_images_of_one_colour_are_a_user_error_and_not_a_division_by_zero():
    black = np.zeros((3, 2, 2, 3), np.uint8)
    data = ResidentDataset.from_arrays(black, np.zeros(3, int), black, np.zeros(3, int))
    with pytest.raises(UserError, match=r"set config\.normalization\.std"):
        Channel().make(data)


@pytest.mark.parametrize(
    "setting",
    [
        {"name": "per_image"},
        {"name": "channel", "std": (0.5, 0.0, 0.5)},
        {"name": "channel", "mean": (float("nan"),) * 3},
        {"name": "per_pixel_mean", "mean": (0.5, 0.5, 0.5)},
    ],
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValidationError):
        TypeAdapter(AnyNormalization).validate_python(setting)


@pytest.mark.parametrize("shape", [(3,), (4, 5, 3)])
def test_what_is_saved_is_loaded(tmp_path, shape):
    rng = np.random.default_rng(3)
    saved = Normalization(rng.random(shape, np.float32), rng.random(3, np.float32))
    saved.save(tmp_path / "normalization.npz")
    loaded = Normalization.load(tmp_path / "normalization.npz")
    np.testing.assert_array_equal(loaded.mean, saved.mean, strict=True)
    np.testing.assert_array_equal(loaded.std, saved.std, strict=True)
    assert [path.name for path in tmp_path.iterdir()] == ["normalization.npz"]


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def delete(path):
    path.unlink()


def replace_by_other_arrays(path):
    np.savez(path, mean=np.zeros(3))


@pytest.mark.parametrize("damage", [truncate, empty, delete, replace_by_other_arrays])
def test_a_damaged_file_is_a_user_error_that_names_it(tmp_path, damage):
    path = tmp_path / "normalization.npz"
    Normalization(np.zeros((4, 5, 3), np.float32), np.ones(3, np.float32)).save(path)
    damage(path)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))} is missing or damaged") as caught:
        Normalization.load(path)
    assert "\n" not in str(caught.value)
