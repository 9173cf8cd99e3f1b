"""Data sets of images of one size, whole in memory."""

import json

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from resnet_jax.data import Photographs, Resident
from resnet_jax.data.cache import cache_dir
from resnet_jax.data.sources import tfds as module
from resnet_jax.errors import UserError
from tests.data.sources.handmade_tfds import SHARDS, example, image, png, prepare, write_shards


def test_a_resident_data_set_may_be_prepared_as_tfrecord(tmp_path):
    folder = prepare(tmp_path, "tfrecord", name="cifar10", classes=["cat", "dog", "frog"])
    same_size = [example("train", 0, False)] * 6
    for split in ("train", "test"):
        write_shards(folder, "cifar10", split, "tfrecord", [same_size[:n] for n in SHARDS])
    dataset = Resident().load(str(tmp_path))
    np.testing.assert_array_equal(dataset.resident("test").images, np.stack([image("train", 0)] * 6))


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
