import re

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from resnet_jax import recipes
from resnet_jax.data import normalization as module
from resnet_jax.data.crops import center_box
from resnet_jax.data.dataset import load_data
from resnet_jax.data.images import crop_and_resize
from resnet_jax.data.normalization import Normalization, channel_normalization, normalization
from resnet_jax.data.resident import Dataset, Split
from resnet_jax.data.streaming import Photographs
from resnet_jax.data.tfds_source import open_builder, open_split
from resnet_jax.errors import UserError


@pytest.fixture
def train_split():
    rng = np.random.default_rng(1)
    return Split(rng.integers(256, size=(7, 4, 5, 3), dtype=np.uint8), np.zeros(7, np.int32))


@pytest.fixture
def dataset(train_split):
    other = Split(np.full((2, 4, 5, 3), 255, np.uint8), np.zeros(2, np.int32))  # Of another mean.
    return Dataset(train_split, other, other, ["cat"])


def photographs(tmp_path, count=9):
    """Of pixels, not files; a file stands for the training split."""
    (tmp_path / "train").write_bytes(b"some records")
    records = []
    for i in range(count):
        pixels = np.random.default_rng(i).integers(256, size=(14 + i, 30 - i, 3), dtype=np.uint8)
        records.append({"image": pixels, "label": 0, "name": f"{i}.jpg"})
    return Photographs(
        {"train": records, "validation": records[:1]}.__getitem__, ["cat"], (8, 8, 3), lambda: [tmp_path / "train"]
    )


def photograph_config(crop=8):
    config = recipes.base()
    config.data.name = "folder"
    config.data.crop_size, config.data.eval_shorter_side, config.data.threads = crop, 12, 2
    return config


def mean_crop(data, crop=8):
    cut = [
        crop_and_resize(record["image"], lambda height, width: center_box(height, width, 12, crop), (crop, crop))
        for record in data.train
    ]
    return np.mean(cut, axis=0, dtype=np.float64) / 255


def test_per_pixel_mean_leaves_each_pixel_with_mean_zero(dataset):
    images = dataset.train.images
    normalize = normalization(recipes.base(), dataset)
    expected = images.astype(np.float64).sum(axis=0) / len(images) / 255
    assert normalize.mean.shape == (4, 5, 3)
    assert normalize.mean.dtype == normalize.std.dtype == np.float32
    np.testing.assert_allclose(normalize.mean, expected, rtol=1e-6)
    np.testing.assert_array_equal(normalize.std, [1, 1, 1])
    normalized = normalize(jnp.asarray(images))
    assert normalized.dtype == jnp.float32
    np.testing.assert_allclose(normalized, images / 255 - expected, atol=1e-6)
    np.testing.assert_allclose(normalized.mean(axis=0), 0, atol=1e-6)


def test_per_pixel_mean_of_photographs_is_that_of_their_central_crops(tmp_path):
    data = photographs(tmp_path)
    normalize = normalization(photograph_config(), data)
    assert normalize.mean.dtype == np.float32
    np.testing.assert_allclose(normalize.mean, mean_crop(data), rtol=1e-6)
    np.testing.assert_array_equal(normalize.std, [1, 1, 1])


def refuse(*_):
    raise AssertionError("not to be called")


def test_the_mean_of_photographs_is_computed_once(tmp_path, monkeypatch):
    data = photographs(tmp_path)
    first = normalization(photograph_config(), data)
    with monkeypatch.context() as patch:
        patch.setattr(module, "mean_image", refuse)
        again = normalization(photograph_config(), data)
    np.testing.assert_array_equal(again.mean, first.mean, strict=True)
    # Other crops have a mean of their own, and so have other photographs.
    np.testing.assert_allclose(normalization(photograph_config(crop=6), data).mean, mean_crop(data, 6), rtol=1e-6)
    other = photographs(tmp_path, count=3)
    (tmp_path / "train").write_bytes(b"other records")
    np.testing.assert_allclose(normalization(photograph_config(), other).mean, mean_crop(other), rtol=1e-6)


def test_the_mean_of_a_folder_is_computed_anew_when_a_photograph_is_added(tmp_path):
    config = recipes.base()
    config.data.name, config.data_dir = "folder", str(tmp_path)
    config.data.crop_size = config.data.eval_shorter_side = 8

    def add(name, value):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.full((20, 20, 3), value, np.uint8)).save(path)

    add("train/cat/0.png", 0)
    add("val/cat/0.png", 0)
    assert normalization(config, load_data(config)).mean.mean() == 0
    add("train/cat/1.png", 255)
    assert normalization(config, load_data(config)).mean.mean() == 0.5


def test_too_many_undecodable_photographs_are_a_user_error_and_no_mean_is_kept(tmp_path):
    data, config = photographs(tmp_path), photograph_config()
    sound = data.train[4]["image"]
    data.train[4]["image"] = b"garbage"
    config.data.max_unreadable = 0
    with pytest.raises(UserError, match=r"^1 photographs cannot be decoded, more than config\.data\.max_unreadable 0;"):
        normalization(config, data)
    data.train[4]["image"] = sound
    np.testing.assert_allclose(normalization(config, data).mean, mean_crop(data), rtol=1e-6)


def test_a_mean_image_on_images_of_another_size_is_its_mean_over_all_pixels():
    rng = np.random.default_rng(2)
    normalize = Normalization(rng.random((4, 5, 3), np.float32), np.array([1, 0.5, 2], np.float32))
    colour = normalize.mean.astype(np.float64).sum(axis=(0, 1)) / 20
    for shape in [(2, 6, 6, 3), (2, 5, 4, 3), (2, 1, 1, 3)]:
        images = rng.integers(256, size=shape, dtype=np.uint8)
        np.testing.assert_allclose(normalize(jnp.asarray(images)), (images / 255 - colour) / normalize.std, atol=1e-6)
    images = rng.integers(256, size=(2, 4, 5, 3), dtype=np.uint8)
    expected = (images / 255 - normalize.mean) / normalize.std
    np.testing.assert_allclose(normalize(jnp.asarray(images)), expected, atol=1e-6)


def channel_config(name="cifar10", **values):
    config = recipes.base()
    config.data.name = name
    config.data.normalization = "channel"
    config.data.update(values)
    return config


def test_channel_normalization_uses_the_numbers_of_the_config(dataset):
    mean, std = (0.5, 0.25, 0.125), (0.5, 0.2, 0.1)
    normalize = normalization(channel_config(mean=mean, std=std), dataset)
    images = dataset.train.images
    expected = np.stack([(images[..., c] / 255 - mean[c]) / std[c] for c in range(3)], axis=-1)
    np.testing.assert_allclose(normalize(jnp.asarray(images)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["imagenet2012", "folder", "packed"])
def test_channel_normalization_of_photographs_is_that_of_imagenet_where_none_is_given(name):
    normalize = channel_normalization(channel_config(name))
    assert normalize.mean.dtype == normalize.std.dtype == np.float32
    np.testing.assert_allclose(normalize.mean, [0.485, 0.456, 0.406])
    np.testing.assert_allclose(normalize.std, [0.229, 0.224, 0.225])
    # Either alone may be given.
    given = channel_normalization(channel_config(name, mean=(0.1, 0.2, 0.3)))
    np.testing.assert_allclose(given.mean, [0.1, 0.2, 0.3])
    np.testing.assert_array_equal(given.std, normalize.std)


def test_the_numbers_of_the_digits_are_theirs():
    config = channel_config("digits")
    pixels = load_data(config).train.images.reshape(-1, 3) / 255
    normalize = channel_normalization(config)
    np.testing.assert_allclose(normalize.mean, pixels.mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(normalize.std, pixels.std(axis=0), atol=1e-3)


def test_the_numbers_of_cifar10_are_its(prepared_tfds):
    source = open_split(open_builder("cifar10", str(prepared_tfds)), "train")
    images = np.stack([source[i]["image"] for i in range(0, len(source), 20)])
    normalize = channel_normalization(channel_config("cifar10"))
    # Those of a twentieth of the images; of CIFAR-100 they are further off.
    np.testing.assert_allclose(normalize.mean, images.mean(axis=(0, 1, 2)) / 255, atol=0.01)
    np.testing.assert_allclose(normalize.std, images.std(axis=(0, 1, 2)) / 255, atol=0.01)


@pytest.mark.parametrize(
    ("key", "value"),
    [("normalization", "per_image"), ("mean", (0.5,)), ("std", (0.5, 0.5)), ("std", (0.5, 0.0, 0.5))],
)
def test_a_wrong_normalization_is_refused_by_its_key(dataset, key, value):
    with pytest.raises(UserError, match=rf"config\.data\.{key} is "):
        normalization(channel_config(**{key: value}), dataset)


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
