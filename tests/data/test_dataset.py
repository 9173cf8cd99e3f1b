import numpy as np
import PIL.Image
import pytest

from resnet_jax import recipes
from resnet_jax.data import resident
from resnet_jax.data.dataset import evaluation_split, load_data
from resnet_jax.data.packed import write_pack
from resnet_jax.data.resident import Dataset
from resnet_jax.data.streaming import Photographs
from resnet_jax.errors import UserError


def config_for(name, data_dir=None):
    config = recipes.base()
    config.data.name = name
    config.data_dir = data_dir and str(data_dir)
    config.data.crop_size = 10
    return config


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        (tmp_path / split / "cat").mkdir(parents=True)
        for i in range(count):
            PIL.Image.fromarray(np.full((20, 30, 3), i, np.uint8)).save(tmp_path / split / "cat" / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize(("holdout", "split"), [(0, "test"), (5, "validation")])
def test_digits_are_evaluated_on_what_is_held_out_or_else_on_their_test_split(holdout, split):
    config = config_for("digits")
    config.data.holdout = holdout
    data = load_data(config)
    assert isinstance(data, Dataset)
    assert evaluation_split(data) == split
    assert len(data.split(split)) > 0


def test_photographs_are_evaluated_on_their_validation_split(folder):
    data = load_data(config_for("folder", folder))
    assert isinstance(data, Photographs)
    assert evaluation_split(data) == "validation"
    assert (len(data.split("train")), len(data.split("validation"))) == (3, 2)


def test_a_pack_of_photographs_is_opened_by_name(folder, tmp_path):
    source = load_data(config_for("folder", folder))
    for split in ("train", "validation"):
        write_pack(source.split(split), tmp_path / "pack", split, 20, source.class_names, threads=1)
    data = load_data(config_for("packed", tmp_path / "pack"))
    assert isinstance(data, Photographs)
    assert data.class_names == ["cat"] and data.image_shape == (10, 10, 3)
    np.testing.assert_array_equal(data.train[2]["image"], np.full((20, 30, 3), 2, np.uint8))


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100"])
def test_small_data_sets_live_on_the_device(monkeypatch, name):
    # Decoding them would take long.
    monkeypatch.setattr(resident, "load_dataset", lambda config: f"{config.data.name} in memory")
    assert load_data(config_for(name)) == f"{name} in memory"


def test_imagenet_is_streamed(prepared_tfds):
    if not (prepared_tfds / "imagenet2012").is_dir():
        pytest.skip(f"needs a sample of imagenet2012 prepared in {prepared_tfds}")
    data = load_data(config_for("imagenet2012", prepared_tfds))
    assert isinstance(data, Photographs)
    assert evaluation_split(data) == "validation"
    assert (len(data.train), len(data.validation), len(data.class_names)) == (300, 100, 1000)


def test_an_unknown_data_set_names_the_known_ones():
    known = "digits, cifar10, cifar100, imagenet2012, folder, packed"
    with pytest.raises(UserError, match=rf"^config\.data\.name is 'svhn'; it must be one of {known}$"):
        load_data(config_for("svhn"))
