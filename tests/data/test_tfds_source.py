import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from resnet_jax import recipes
from resnet_jax.data import resident, tfds_source
from resnet_jax.data.tfds_source import open_builder, open_split, resolve_data_dir, split_files
from resnet_jax.errors import UserError


def pretend_tensorflow(monkeypatch, installed):
    find_spec = tfds_source.importlib.util.find_spec
    found = {"tensorflow": object() if installed else None}
    monkeypatch.setattr(
        tfds_source.importlib.util, "find_spec", lambda name, *rest: found[name] if name in found else find_spec(name)
    )


def pretend_child(monkeypatch, returncode):
    commands = []

    def run(command):
        commands.append(command)
        return SimpleNamespace(returncode=returncode)

    monkeypatch.setattr(tfds_source.subprocess, "run", run)
    return commands


def test_data_dir_is_the_argument_then_the_variable_then_the_default_of_tfds(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", "/from/variable")
    assert resolve_data_dir("/from/argument") == Path("/from/argument")
    assert resolve_data_dir("~/own") == tmp_path / "own"
    assert resolve_data_dir(None) == Path("/from/variable")
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert resolve_data_dir(None) == tmp_path / "tensorflow_datasets"


def test_a_data_set_not_prepared_and_no_tensorflow_names_the_one_command(monkeypatch, tmp_path):
    pretend_tensorflow(monkeypatch, installed=False)
    commands = pretend_child(monkeypatch, returncode=0)
    command = f"pip install tensorflow && python -m resnet_jax.data.prepare cifar10 --data_dir {tmp_path}"
    with pytest.raises(UserError, match=re.escape(command)) as caught:
        open_builder("cifar10", str(tmp_path))
    assert "is not prepared" in str(caught.value) and "\n" not in str(caught.value)
    assert commands == []
    assert list(tmp_path.iterdir()) == []


def test_with_tensorflow_a_child_process_prepares_and_its_failure_is_a_user_error(monkeypatch, tmp_path):
    pretend_tensorflow(monkeypatch, installed=True)
    commands = pretend_child(monkeypatch, returncode=1)
    with pytest.raises(UserError, match=f"preparing 'cifar10' in {re.escape(str(tmp_path))} failed"):
        open_builder("cifar10", str(tmp_path))
    assert commands == [[sys.executable, "-m", "resnet_jax.data.prepare", "cifar10", "--data_dir", str(tmp_path)]]


def test_preparation_that_left_nothing_is_a_user_error(monkeypatch, tmp_path):
    pretend_tensorflow(monkeypatch, installed=True)
    pretend_child(monkeypatch, returncode=0)
    with pytest.raises(UserError, match=r"'cifar10' .* is not prepared as array_record"):
        open_builder("cifar10", str(tmp_path))


def test_cifar10_test_images_are_read(prepared_tfds):
    source = open_split(open_builder("cifar10", str(prepared_tfds)), "test")
    assert len(source) == 10_000
    records = [source[i] for i in range(0, len(source), 40)]
    assert {record["image"].shape for record in records} == {(32, 32, 3)}
    assert {record["image"].dtype for record in records} == {np.dtype(np.uint8)}
    assert {record["label"] for record in records} == set(range(10))
    images = np.stack([record["image"] for record in records]) / 255
    # The published statistics of the training set; colours swapped or scaled wrongly are further off than this.
    config = recipes.base()
    np.testing.assert_allclose(images.mean(axis=(0, 1, 2)), config.data.mean, atol=0.02)
    np.testing.assert_allclose(images.std(axis=(0, 1, 2)), config.data.std, atol=0.02)


@pytest.fixture
def small_cifar10(prepared_tfds, tmp_path):
    """(config, train file): CIFAR-10 with its 10,000 test images as both splits, in a folder that may be damaged."""
    (version,) = (prepared_tfds / "cifar10").iterdir()
    copy = tmp_path / "tfds" / "cifar10" / version.name
    copy.mkdir(parents=True)
    for path in [*version.glob("*.json"), *version.glob("*.txt")]:
        shutil.copyfile(path, copy / path.name)
    info = json.loads((copy / "dataset_info.json").read_text())
    (test,) = (split for split in info["splits"] if split["name"] == "test")
    info["splits"] = [test, test | {"name": "train"}]
    (copy / "dataset_info.json").write_text(json.dumps(info))
    (test_file,) = version.glob("cifar10-test.*")
    train_file = copy / test_file.name.replace("test", "train")
    shutil.copyfile(test_file, train_file)
    (copy / test_file.name).symlink_to(test_file)
    config = recipes.base()
    config.data_dir = str(tmp_path / "tfds")
    return config, train_file


def test_a_data_set_is_decoded_once_and_then_read_from_the_cache(small_cifar10, monkeypatch):
    config, train_file = small_cifar10
    dataset = resident.load_dataset(config)
    assert dataset.num_classes == 10
    assert dataset.train.images.shape == (10_000, 32, 32, 3)
    assert dataset.train.images.dtype == np.uint8
    # CIFAR-10 has 1,000 test images of each class.
    np.testing.assert_array_equal(np.bincount(dataset.train.labels), [1000] * 10)
    np.testing.assert_array_equal(dataset.train.images, dataset.test.images)

    builder = open_builder("cifar10", config.data_dir)
    assert split_files(builder, "train") == [train_file]
    source = open_split(builder, "test")
    for i in (0, 5_000, 9_999):
        np.testing.assert_array_equal(dataset.test.images[i], source[i]["image"])
        assert dataset.test.labels[i] == source[i]["label"]

    monkeypatch.delattr(resident.tfds_source, "open_split")
    again = resident.load_dataset(config)
    np.testing.assert_array_equal(again.train.images, dataset.train.images)
    np.testing.assert_array_equal(again.train.labels, dataset.train.labels)


def truncate(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def flip_bits(path):
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 10)
        data = file.read(16)
        file.seek(-len(data), 1)
        file.write(bytes(byte ^ 0xFF for byte in data))


def delete(path):
    path.unlink()


@pytest.mark.parametrize("damage", [truncate, flip_bits, delete])
def test_a_damaged_file_is_a_user_error_that_names_it(small_cifar10, damage, tmp_path):
    config, train_file = small_cifar10
    damage(train_file)
    with pytest.raises(UserError, match=re.escape(train_file.name)) as caught:
        resident.load_dataset(config)
    assert str(train_file.parent) in str(caught.value) and "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*")), "half of a split was cached"


def test_a_damaged_description_is_a_user_error_that_names_the_folder(small_cifar10):
    config, train_file = small_cifar10
    (train_file.parent / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=re.escape(str(Path(config.data_dir) / "cifar10"))):
        resident.load_dataset(config)
