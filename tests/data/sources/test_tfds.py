"""Prepared data sets are read in their formats, versions and splits; what is damaged is named."""

import io
import json
import pickle
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource

from resnet_jax.data import Resident
from resnet_jax.data.cache import cache_dir
from resnet_jax.data.sources import tfds as module
from resnet_jax.data.sources.tfds import class_names, open_builder, open_split, split_files
from resnet_jax.errors import UserError
from tests.data.sources.handmade_tfds import SHARDS, describe, example, image, png, prepare, write_shards


def test_cifar10_test_images_are_read(prepared_tfds):
    builder = open_builder("cifar10", str(prepared_tfds))
    assert class_names(builder)[:2] == ["airplane", "automobile"] and len(class_names(builder)) == 10
    source = open_split(builder, "test")
    assert len(source) == 10_000
    records = [source[i] for i in range(0, len(source), 40)]
    assert {record["image"].shape for record in records} == {(32, 32, 3)}
    assert {record["image"].dtype for record in records} == {np.dtype(np.uint8)}
    assert {record["label"] for record in records} == set(range(10))
    images = np.stack([record["image"] for record in records]) / 255
    # The published statistics of the training set; colours swapped or scaled wrongly are further off than this.
    np.testing.assert_allclose(images.mean(axis=(0, 1, 2)), (0.4914, 0.4822, 0.4465), atol=0.02)
    np.testing.assert_allclose(images.std(axis=(0, 1, 2)), (0.2470, 0.2435, 0.2616), atol=0.02)


@pytest.fixture
def small_cifar10(prepared_tfds, tmp_path):
    """(data_dir, train file): CIFAR-10 with its 10,000 test images as both splits, in a folder that may be damaged."""
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
    return str(tmp_path / "tfds"), train_file


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
    data_dir, train_file = small_cifar10
    damage(train_file)
    with pytest.raises(UserError, match=re.escape(train_file.name)) as caught:
        Resident().load(data_dir)
    assert str(train_file.parent) in str(caught.value) and "\n" not in str(caught.value)
    assert not list(cache_dir().rglob("*")), "half of a split was cached"


def test_a_damaged_description_is_a_user_error_that_names_the_folder(small_cifar10):
    data_dir, train_file = small_cifar10
    (train_file.parent / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=re.escape(str(Path(data_dir) / "cifar10"))):
        Resident().load(data_dir)


def open_prepared(data_dir, split="train", encoded=False, name="photographs"):
    return open_split(open_builder(name, str(data_dir)), split, encoded)


def records(source):
    return [source[i] for i in range(len(source))]


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys() == {"image", "label", "name"}
        assert one["label"] == other["label"] and one["name"] == other["name"]
        np.testing.assert_array_equal(one["image"], other["image"])


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord", None])
def test_a_prepared_data_set_is_read_in_its_own_format(tmp_path, file_format):
    prepare(tmp_path, file_format)  # None: TFDS once wrote no format, and meant TFRecord.
    for split in ("train", "test"):
        decoded, encoded = (records(open_prepared(tmp_path, split, choice)) for choice in (False, True))
        expected = [{"image": image(split, i), "label": i % 3, "name": f"{split}[{i}]"} for i in range(6)]
        assert_equal(decoded, expected)
        assert_equal(encoded, [record | {"image": png(record["image"])} for record in expected])
        assert {type(record["image"]) for record in encoded} == {bytes}
        assert {type(record["label"]) for record in decoded + encoded} == {int}


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_photographs_go_by_their_file_names(tmp_path, file_format):
    prepare(tmp_path, file_format, with_names=True)
    assert [record["name"] for record in records(open_prepared(tmp_path))] == [f"train é {i}.JPEG" for i in range(6)]


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_a_part_of_a_split_runs_across_its_files(tmp_path, file_format):
    prepare(tmp_path, file_format)
    whole, part = open_prepared(tmp_path), open_prepared(tmp_path, "train[2:5]")
    found = records(part)
    assert [record["name"] for record in found] == [f"train[2:5][{i}]" for i in range(3)]
    assert_equal(found, [whole[i] | {"name": f"train[2:5][{i - 2}]"} for i in (2, 3, 4)])
    (only,) = records(open_prepared(tmp_path, "train[-1:]"))
    np.testing.assert_array_equal(only["image"], image("train", 5))


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_a_source_can_be_pickled_and_read_by_many_threads_at_once(tmp_path, file_format):
    prepare(tmp_path, file_format)
    source = open_prepared(tmp_path, encoded=True)
    expected = records(source)
    for copy in (source, pickle.loads(pickle.dumps(source))):
        with ThreadPoolExecutor(8) as pool:
            assert_equal(list(pool.map(lambda i, copy=copy: copy[i % 6], range(120))), expected * 20)
        with pytest.raises(IndexError):
            copy[6]


def test_sources_are_read_without_jax_or_tensorflow(tmp_path):
    prepare(tmp_path, "tfrecord")
    (tmp_path / "source.pickle").write_bytes(pickle.dumps(open_prepared(tmp_path)))
    # The package itself offers models, so it is put aside to see what the sources need.
    program = f"""
import pickle, sys, types
package = sys.modules["resnet_jax"] = types.ModuleType("resnet_jax")
package.__path__ = [{str(Path(module.__file__).parent.parent.parent)!r}]
import resnet_jax.data.sources.folder, resnet_jax.data.sources.packed
assert len(pickle.load(open({str(tmp_path / "source.pickle")!r}, "rb"))[3]) == 3
assert not {{"jax", "tensorflow"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_array_record_is_preferred_where_a_data_set_was_converted_in_place(tmp_path):
    folder = prepare(tmp_path, "tfrecord")
    expected = records(open_prepared(tmp_path))
    describe(folder, "photographs", fileFormat="tfrecord", alternativeFileFormats=["riegeli", "array_record"])
    shards = iter([example("train", i, False) for i in range(6)])
    converted = write_shards(
        folder, "photographs", "train", "array_record", [[next(shards) for _ in range(n)] for n in SHARDS]
    )
    builder = open_builder("photographs", str(tmp_path))
    assert split_files(builder, "train") == converted
    for path in folder.glob("*.tfrecord-*"):
        path.unlink()
    assert_equal(records(open_split(builder, "train")), expected)


def test_the_newest_version_in_the_best_format_is_read(tmp_path):
    def version():
        return Path(open_builder("photographs", str(tmp_path)).data_path).name

    prepare(tmp_path, "tfrecord", version="9.0.0")
    prepare(tmp_path, "tfrecord", version="10.0.0")
    assert version() == "10.0.0"
    prepare(tmp_path, "array_record", version="1.2.0")
    assert version() == "1.2.0"
    prepare(tmp_path, "array_record", version="incomplete.ABCDEF_2.0.0")
    prepare(tmp_path, "parquet", version="11.0.0")
    assert version() == "1.2.0"


@pytest.mark.parametrize("file_format", ["riegeli", "parquet"])
def test_other_formats_are_a_user_error_with_the_command(tmp_path, file_format):
    prepare(tmp_path, file_format)
    command = "pip install tensorflow && python -m resnet_jax.data.prepare photographs --data_dir OTHER_DIR"
    with pytest.raises(UserError, match=re.escape(command)) as caught:
        open_prepared(tmp_path)
    assert "is not prepared as array_record or tfrecord" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("split", ["validation", "train[", "train[:1%"])
def test_an_unknown_split_is_a_user_error_that_names_those_there_are(tmp_path, split):
    prepare(tmp_path, "tfrecord")
    with pytest.raises(UserError, match=rf"no split '{re.escape(split)}'; it has train, test") as caught:
        open_prepared(tmp_path, split)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="it has train, test"):
        split_files(open_builder("photographs", str(tmp_path)), split)


@pytest.mark.parametrize(
    ("file_format", "damage"), [("tfrecord", truncate), ("tfrecord", delete), ("array_record", delete)]
)
def test_a_damaged_or_missing_file_is_a_user_error_that_names_it_before_anything_is_read(tmp_path, file_format, damage):
    path = prepare(tmp_path, file_format) / f"photographs-train.{file_format}-00001-of-00003"
    damage(path)
    with pytest.raises(UserError, match=re.escape(str(path))):
        open_prepared(tmp_path)
    assert len(open_prepared(tmp_path, "test")) == 6


def test_a_tfrecord_file_that_lost_whole_records_is_a_user_error_that_names_it(tmp_path):
    folder = prepare(tmp_path, "tfrecord")
    examples = iter([example("train", i, False) for i in range(6)])
    write_shards(folder, "photographs", "train", "tfrecord", [[next(examples) for _ in range(n)] for n in (3, 1, 1)])
    with pytest.raises(UserError, match=r"tfrecord-00002-of-00003 holds 1 records, not 2"):
        open_prepared(tmp_path)


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_a_record_that_cannot_be_read_is_a_user_error_that_names_its_file(tmp_path, file_format):
    folder = prepare(tmp_path, file_format)
    shards = [[example("train", i, False) for i in range(3)], [b"no example"], [example("train", 4, False)] * 2]
    files = write_shards(folder, "photographs", "train", file_format, shards)
    source = open_prepared(tmp_path)
    for i in (2, 4):
        np.testing.assert_array_equal(source[i]["image"], image("train", i))
    with pytest.raises(UserError, match=re.escape(str(files[1]))) as caught:
        source[3]
    assert "\n" not in str(caught.value)


def test_class_names_are_words_for_imagenet_and_else_those_of_the_data_set(tmp_path):
    prepare(tmp_path, "tfrecord", name="wordnet")
    prepare(tmp_path, "tfrecord", name="others", classes=["cat", "dog", "n01440764"])
    words = [
        "tench, Tinca tinca",
        "goldfish, Carassius auratus",
        "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias",
    ]
    assert class_names(open_builder("wordnet", str(tmp_path))) == words
    assert class_names(open_builder("others", str(tmp_path))) == ["cat", "dog", "n01440764"]


@pytest.fixture
def imagenet(prepared_tfds):
    """The folder of a version of ImageNet."""
    folders = sorted((prepared_tfds / "imagenet2012").glob("*"))
    if not folders:
        pytest.skip(f"needs imagenet2012 prepared in {prepared_tfds}")
    return folders[-1]


def test_imagenet_photographs_stay_encoded(imagenet):
    builder = open_builder("imagenet2012", str(imagenet.parent.parent))
    record = open_split(builder, "validation", encoded=True)[0]
    assert record["image"].startswith(b"\xff\xd8\xff") and record["name"].endswith(".JPEG")
    assert isinstance(record["name"], str) and isinstance(record["label"], int)
    decoded = open_split(builder, "validation")[0]
    assert decoded["image"].shape[:2] == PIL.Image.open(io.BytesIO(record["image"])).size[::-1]
    names = class_names(builder)
    assert len(names) == 1000 and names[0] == "tench, Tinca tinca" and names[999].startswith("toilet tissue")


def test_imagenet_as_tfrecord_equals_imagenet_as_array_record(imagenet, tmp_path):
    (file,) = imagenet.glob("imagenet2012-validation.array_record*")
    raw = ArrayRecordDataSource([str(file)])
    copy = tmp_path / "imagenet2012" / imagenet.name
    copy.mkdir(parents=True)
    for path in [*imagenet.glob("*.json"), *imagenet.glob("*.txt")]:
        shutil.copyfile(path, copy / path.name)
    info = json.loads((copy / "dataset_info.json").read_text())
    (validation,) = (split for split in info["splits"] if split["name"] == "validation")
    info |= {"fileFormat": "tfrecord", "splits": [validation | {"shardLengths": ["7", "9"]}]}
    (copy / "dataset_info.json").write_text(json.dumps(info))
    shards = [[raw[i] for i in range(7)], [raw[i] for i in range(7, 16)]]
    write_shards(copy, "imagenet2012", "validation", "tfrecord", shards)
    for encoded in (False, True):
        found = records(open_prepared(tmp_path, "validation", encoded, "imagenet2012"))
        original = open_prepared(imagenet.parent.parent, "validation", encoded, "imagenet2012")
        assert_equal(found, [original[i] for i in range(16)])
