import io
import json
import pickle

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from resnet_jax.data.sources.detection import open_detection
from resnet_jax.errors import UserError

# Of each photograph (height, width): boxes in one-based pixels as (xmin, ymin, xmax, ymax), labels, flags.
PHOTOGRAPHS = [
    ((30, 40), [(1, 1, 40, 30), (11, 6, 20, 15)], [1, 0], [False, True]),
    ((50, 25), [], [], []),
    ((20, 20), [(3, 4, 10, 12)], [1], [False]),
]


def prepare(root, name, classes, flag, areas=False, upper=1, objects=True):
    """A data set as TFDS prepares it, in array_record. ``upper``: the pixel that it calls the first."""
    folder = root / name / "1.0.0"
    folder.mkdir(parents=True)
    inner = {"bbox": tfds.features.BBoxFeature(), "label": tfds.features.ClassLabel(names=classes), flag: np.bool_}
    features = {"image": tfds.features.Image(), "image/filename": tfds.features.Text()}
    features |= {"objects": tfds.features.Sequence(inner | ({"area": np.int64} if areas else {}))} if objects else {}
    tfds.features.FeaturesDict(features | ({"image/id": np.int64} if areas else {})).save_config(str(folder))
    short = name.split("/")[0]
    writer = ArrayRecordWriter(str(folder / f"{short}-train.array_record-00000-of-00001"), "group_size:1")
    for number, ((height, width), boxes, labels, flags) in enumerate(PHOTOGRAPHS):
        message = tf_example_pb2.Example()
        fields = message.features.feature
        file = io.BytesIO()
        PIL.Image.new("RGB", (width, height)).save(file, "png")
        fields["image"].bytes_list.value.append(file.getvalue())
        fields["image/filename"].bytes_list.value.append(f"{number}.jpg".encode())
        # (ymin, xmin, ymax, xmax) as fractions of the sides.
        sides, shift = np.array([height, width, height, width]), np.array([1 - upper, 1 - upper, 0, 0])
        corners = [np.array([y1, x1, y2, x2]) - shift for x1, y1, x2, y2 in boxes]
        fields["objects/bbox"].float_list.value.extend(float(value) for box in corners for value in box / sides)
        fields["objects/label"].int64_list.value.extend(labels)
        fields[f"objects/{flag}"].int64_list.value.extend(map(int, flags))
        if areas:
            fields["image/id"].int64_list.value.append(100 + number)
            fields["objects/area"].int64_list.value.extend(7 + number for _ in boxes)
        writer.write(message.SerializeToString())
    writer.close()
    split = {"name": "train", "shardLengths": [str(len(PHOTOGRAPHS))]}
    split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    description = {"name": short, "version": "1.0.0", "fileFormat": "array_record", "splits": [split]}
    (folder / "dataset_info.json").write_text(json.dumps(description))


def opened(root, name="voc/2007", split="train", classes=()):
    return open_detection(name, str(root), [split], classes)


def test_vocs_corners_lose_the_pixel_that_tfds_keeps(tmp_path):
    prepare(tmp_path, "voc/2007", ["cat", "dog"], "is_difficult")
    found = opened(tmp_path)
    assert found.class_names == ["cat", "dog"] and found.category_ids == [0, 1]
    first = found.open_split("train")
    for source in (first, pickle.loads(pickle.dumps(first))):
        assert [source[i]["name"] for i in range(len(source))] == ["0.jpg", "1.jpg", "2.jpg"]
        assert PIL.Image.open(io.BytesIO(source[1]["image"])).size == (25, 50)
        objects = source.objects(0)
        # In single precision the fractions are exact to a millionth of a pixel or so.
        np.testing.assert_allclose(objects.boxes, [[0, 0, 40, 30], [10, 5, 20, 15]], atol=1e-5)
        assert objects.labels.tolist() == [1, 0] and objects.difficult.tolist() == [False, True]
        assert not objects.crowd.any() and len(source.objects(1).labels) == 0
        assert [source.image_id(i) for i in range(3)] == [0, 1, 2]
    assert [path.name for path in first.files()] == ["voc-train.array_record-00000-of-00001"]


def test_cocos_corners_are_exact_and_its_labels_are_80_of_90_ids(tmp_path):
    prepare(tmp_path, "coco/2017", [f"class {i}" for i in range(80)], "is_crowd", areas=True, upper=0)
    found = opened(tmp_path, "coco/2017")
    assert len(found.category_ids) == 80 and found.category_ids == sorted(found.category_ids)
    # person, fire hydrant, stop sign, teddy bear, toothbrush: labels and ids of COCO's own tables.
    assert [found.category_ids[label] for label in (0, 10, 11, 77, 79)] == [1, 11, 13, 88, 90]
    source = found.open_split("train")
    np.testing.assert_allclose(source.objects(2).boxes, [[2, 3, 10, 12]], atol=1e-5)
    assert source.objects(0).crowd.tolist() == [False, True] and not source.objects(0).difficult.any()
    assert source.objects(2).areas.tolist() == [9] and [source.image_id(i) for i in range(3)] == [100, 101, 102]


def test_splits_of_two_years_and_parts_of_splits_are_named(tmp_path):
    prepare(tmp_path, "voc/2007", ["cat", "dog"], "is_difficult")
    prepare(tmp_path, "voc/2012", ["cat", "dog"], "is_difficult")
    found = opened(tmp_path)
    assert len(found.open_split("voc/2012:train")) == 3
    part = found.open_split("voc/2012:train[1:]")
    assert len(part) == 2 and len(found.open_split("train[:1]")) == 1
    np.testing.assert_allclose(part.objects(1).boxes, [[2, 3, 10, 12]], atol=1e-5)


def test_what_does_not_fit_is_a_user_error(tmp_path):
    prepare(tmp_path, "voc/2007", ["cat", "dog"], "is_difficult")
    prepare(tmp_path, "voc/2012", ["dog", "cat"], "is_difficult")
    prepare(tmp_path, "pictures", ["cat"], "is_crowd", objects=False)
    with pytest.raises(UserError, match=r"the classes of voc/2012 and voc/2007 differ"):
        opened(tmp_path).open_split("voc/2012:train")
    with pytest.raises(UserError, match=r"'pictures' has no objects with labels"):
        opened(tmp_path, "pictures")
    with pytest.raises(UserError, match=r"voc/2007 names its classes itself"):
        opened(tmp_path, classes=("cat",))
    with pytest.raises(UserError, match=r"has no split 'test'; it has train"):
        opened(tmp_path).open_split("test")
    (file,) = (tmp_path / "voc/2007/1.0.0").glob("*.array_record-*")
    data = bytearray(file.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    file.write_bytes(data)
    source = opened(tmp_path).open_split("train")
    with pytest.raises(UserError, match=file.name) as caught:
        [source.objects(i) for i in range(3)]
    assert "\n" not in str(caught.value)
