"""Data sets of TensorFlow Datasets as it prepares them, written by hand."""

import io
import json

import numpy as np
import PIL.Image
from array_record.python.array_record_module import ArrayRecordWriter
from tensorboardX.record_writer import RecordWriter
from tensorflow_datasets.proto import tf_example_pb2

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
