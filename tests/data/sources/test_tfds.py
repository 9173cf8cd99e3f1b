import io
import json
import pickle
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from tensorboardX.record_writer import RecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from resnet_jax.data import Photographs, Resident
from resnet_jax.data.cache import cache_dir
from resnet_jax.data.sources import tfds as module
from resnet_jax.data.sources.tfds import class_names, open_builder, open_split, resolve_data_dir, split_files
from resnet_jax.errors import UserError


def pretend_tensorflow(monkeypatch, installed):
    find_spec = module.importlib.util.find_spec
    found = {"tensorflow": object() if installed else None}
    monkeypatch.setattr(
        module.importlib.util, "find_spec", lambda name, *rest: found[name] if name in found else find_spec(name)
    )


def pretend_child(monkeypatch, returncode):
    commands = []

    def run(command):
        commands.append(command)
        return SimpleNamespace(returncode=returncode)

    monkeypatch.setattr(module.subprocess, "run", run)
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


CLASSES = ["n01440764", "n01443537", "n01484850"]
SHARDS = [3, 1, 2]  # Records in each file of a split.


def image(split, i):
    """(5, 4 + i, 3) uint8: another for each record."""
    return np.random.default_rng((len(split), i)).integers(256, size=(5, 4 + i, 3), dtype=np.uint8)


def png(pixels):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def example(split, i, with_names, keys=("image", "label")):
    """A serialised tf.train.Example."""
    message = tf_example_pb2.Example()
    feature = message.features.feature
    feature[keys[0]].bytes_list.value.append(png(image(split, i)))
    feature[keys[1]].int64_list.value.append(i % len(CLASSES))
    if with_names:
        feature["file_name"].bytes_list.value.append(f"{split} é {i}.JPEG".encode())
    return message.SerializeToString()


def write_shards(folder, name, split, file_format, shards):
    """The files of a split, holding the serialised examples of ``shards``."""
    paths = []
    for number, examples in enumerate(shards):
        paths.append(folder / f"{name}-{split}.{file_format}-{number:05}-of-{len(shards):05}")
        array_record = file_format == "array_record"
        writer = ArrayRecordWriter(str(paths[-1]), "group_size:1") if array_record else RecordWriter(str(paths[-1]))
        for serialised in examples:
            writer.write(serialised)
        writer.close()
    return paths


def describe(folder, name, **more):
    splits = [
        {
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            "name": split,
            "shardLengths": [str(length) for length in SHARDS],
        }
        for split in ("train", "test")
    ]
    (folder / "dataset_info.json").write_text(
        json.dumps({"name": name, "version": folder.name, "splits": splits} | more)
    )


def features(with_names):
    package = "tensorflow_datasets.core.features"
    image = {"dtype": "uint8", "encodingFormat": "png", "shape": {"dimensions": ["-1", "-1", "3"]}}
    found = {
        "image": {"pythonClassName": f"{package}.image_feature.Image", "image": image},
        "label": {
            "pythonClassName": f"{package}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(len(CLASSES))},
        },
    }
    if with_names:
        found["file_name"] = {"pythonClassName": f"{package}.text_feature.Text", "text": {}}
    return {"pythonClassName": f"{package}.features_dict.FeaturesDict", "featuresDict": {"features": found}}


def prepare(data_dir, file_format, name="photographs", version="1.0.0", with_names=False, classes=CLASSES):
    """A data set as TFDS prepares it, by hand; the folder of its version."""
    folder = data_dir / name / version
    folder.mkdir(parents=True)
    (folder / "features.json").write_text(json.dumps(features(with_names)))
    (folder / "label.labels.txt").write_text("\n".join(classes))
    describe(folder, name, **({"fileFormat": file_format} if file_format else {}))
    for split in ("train", "test"):
        examples = iter([example(split, i, with_names) for i in range(sum(SHARDS))])
        shards = [[next(examples) for _ in range(length)] for length in SHARDS]
        write_shards(folder, name, split, file_format or "tfrecord", shards)
    return folder


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


def test_a_resident_data_set_may_be_prepared_as_tfrecord(tmp_path):
    folder = prepare(tmp_path, "tfrecord", name="cifar10", classes=["cat", "dog", "frog"])
    same_size = [example("train", 0, False)] * 6
    for split in ("train", "test"):
        write_shards(folder, "cifar10", split, "tfrecord", [same_size[:n] for n in SHARDS])
    dataset = Resident().load(str(tmp_path))
    np.testing.assert_array_equal(dataset.resident("test").images, np.stack([image("train", 0)] * 6))


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


def prepare_images(data_dir, name="small", shape=(4, 5, 1), keys=("image", "label"), splits=("train", "test")):
    """A data set of images of one size as TFDS prepares it, by hand; its images by split."""
    folder = data_dir / name / "1.0.0"
    folder.mkdir(parents=True)
    package = "tensorflow_datasets.core.features"
    dimensions = {"dimensions": [str(side) for side in shape]}
    found = {
        keys[0]: {
            "pythonClassName": f"{package}.image_feature.Image",
            "image": {"dtype": "uint8", "encodingFormat": "png", "shape": dimensions},
        },
        keys[1]: {
            "pythonClassName": f"{package}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": "3"},
        },
    }
    described = {"pythonClassName": f"{package}.features_dict.FeaturesDict", "featuresDict": {"features": found}}
    (folder / "features.json").write_text(json.dumps(described))
    (folder / f"{keys[1]}.labels.txt").write_text("ant\nbee\ncat")
    template = {"filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", "shardLengths": ["6"]}
    info = {"name": name.split("/")[0], "version": "1.0.0", "fileFormat": "tfrecord"}
    info["splits"] = [template | {"name": split} for split in splits]
    if "/" in name:
        info["configName"] = name.split("/")[1]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    images = {}
    for split in splits:
        images[split] = np.random.default_rng(len(split)).integers(256, size=(6, *shape), dtype=np.uint8)
        messages = []
        for i, pixels in enumerate(images[split]):
            message = tf_example_pb2.Example()
            message.features.feature[keys[0]].bytes_list.value.append(png(pixels.squeeze()))
            message.features.feature[keys[1]].int64_list.value.append(i % 3)
            messages.append(message.SerializeToString())
        write_shards(folder, info["name"], split, "tfrecord", [messages])
    return images


@pytest.mark.parametrize("shape", [(4, 5, 1), (7, 3, 3)])
@pytest.mark.parametrize("keys", [("image", "label"), ("picture", "digit")])
def test_any_data_set_of_images_of_one_size_is_resident(tmp_path, shape, keys):
    images = prepare_images(tmp_path, shape=shape, keys=keys)
    data = Resident(name="small").load(str(tmp_path))
    assert (data.image_shape, data.class_names, data.evaluation_split) == (shape, ["ant", "bee", "cat"], "test")
    for split in ("train", "test"):
        np.testing.assert_array_equal(data.resident(split).images, images[split], strict=True)
        assert data.resident(split).labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_a_data_set_is_decoded_once_and_then_read_from_the_cache(tmp_path, monkeypatch):
    images = prepare_images(tmp_path)
    Resident(name="small").load(str(tmp_path))
    monkeypatch.delattr(module, "open_split")
    again = Resident(name="small").load(str(tmp_path))
    for split in ("train", "test"):
        np.testing.assert_array_equal(again.resident(split).images, images[split], strict=True)
        assert again.resident(split).labels.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("splits", "scored"),
    [
        (("train", "validation"), ("validation", "validation")),
        (("train", "test", "validation"), ("validation", "test")),
        (("train", "test", "extra"), ("test", "test")),
    ],
)
def test_what_is_scored_is_the_validation_or_test_split(tmp_path, splits, scored):
    images = prepare_images(tmp_path, splits=splits)
    data = Resident(name="small").load(str(tmp_path))
    assert (data.evaluation_split, data.test_split) == scored
    np.testing.assert_array_equal(data.resident(scored[1]).images, images[scored[1]])
    streamed = Photographs(name="small").load(str(tmp_path))
    assert streamed.evaluation_split == scored[0]
    assert streamed.count(scored[0]) == 6 and streamed.class_names == ["ant", "bee", "cat"]


def test_a_data_set_with_nothing_to_score_is_a_user_error(tmp_path):
    prepare_images(tmp_path, splits=("train",))
    with pytest.raises(UserError, match="'small' has the splits train; it must have train, and test or validation"):
        Resident(name="small").load(str(tmp_path))


def test_images_of_several_sizes_are_a_user_error_that_names_the_kind(tmp_path):
    prepare(tmp_path, "tfrecord")
    with pytest.raises(UserError, match=r"images of several sizes .* set config\.data\.kind=photographs$") as caught:
        Resident(name="photographs").load(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert not [path for path in cache_dir().iterdir() if "index" not in path.name], "half of a split was cached"
    assert Photographs(name="photographs").load(str(tmp_path)).num_train == 6


def test_a_data_set_that_is_not_for_classification_is_a_user_error(tmp_path):
    prepare_images(tmp_path, keys=("image", "label"))
    path = tmp_path / "small/1.0.0/features.json"
    text = path.read_text().replace("class_label_feature.ClassLabel", "image_feature.Image")
    path.write_text(text.replace('"classLabel": {"numClasses": "3"}', '"image": {"dtype": "uint8"}'))
    with pytest.raises(UserError, match=r"no feature 'label' and not just one ClassLabel .* for classification"):
        Resident(name="small").load(str(tmp_path))


def test_the_only_configuration_of_a_data_set_need_not_be_named(tmp_path):
    images = prepare_images(tmp_path, name="small/letters")
    for name in ("small/letters", "small"):
        data = Resident(name=name).load(str(tmp_path))
        np.testing.assert_array_equal(data.resident("train").images, images["train"])
    prepare_images(tmp_path, name="small/digits")
    with pytest.raises(UserError, match="is prepared as small/digits, small/letters; name one of them"):
        Resident(name="small").load(str(tmp_path))


@pytest.mark.parametrize("installed", [True, False])
def test_a_mistyped_data_dir_is_a_user_error_and_nothing_is_downloaded(monkeypatch, tmp_path, installed):
    pretend_tensorflow(monkeypatch, installed)
    commands = pretend_child(monkeypatch, returncode=0)
    wrong = tmp_path / "tensorflow_dtaasets"
    command = f"python -m resnet_jax.data.prepare cifar10 --data_dir {wrong}"
    with pytest.raises(
        UserError, match=f"config.data_dir {re.escape(str(wrong))} does not exist; .*{command}"
    ) as caught:
        open_builder("cifar10", str(wrong))
    assert "\n" not in str(caught.value)
    assert commands == [] and not wrong.exists()


def test_without_a_data_dir_a_data_set_is_prepared_on_first_use(monkeypatch, tmp_path):
    pretend_tensorflow(monkeypatch, installed=True)
    commands = pretend_child(monkeypatch, returncode=1)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "new"))
    with pytest.raises(UserError, match=r"preparing 'cifar10' in .* failed"):
        open_builder("cifar10", None)
    assert commands == [
        [sys.executable, "-m", "resnet_jax.data.prepare", "cifar10", "--data_dir", str(tmp_path / "new")]
    ]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cifar1O", "did you mean 'cifar10'?"),
        ("digit", "did you mean 'digits'?"),
        ("qqqqqqqq", "use digits, folder, packed, csv, jsonl, huggingface or one of those"),
    ],
)
def test_an_unknown_name_is_a_user_error_with_a_hint(monkeypatch, tmp_path, name, hint):
    commands = pretend_child(monkeypatch, returncode=0)
    pretend_tensorflow(monkeypatch, installed=True)
    message = rf"config\.data\.name is '{name}', which is not a data set .*{re.escape(hint)}"
    with pytest.raises(UserError, match=message):
        Resident(name=name).load(str(tmp_path))
    assert commands == []
