"""Photographs a second through the input pipeline, beside tf.data, in turn in one run.

    taskset -c 0 python -m benchmarks.input_pipeline --data_dir DIR

DIR holds ImageNet, or a sample of it, as TFDS prepares it; with ``--name folder``, class folders. All sides make the
same Inception-style crops of the same photographs in the same order, resized to 224 x 224 uint8, in batches of 64, on
as many threads as ``taskset`` leaves cores; "JPEG, bicubic" and so on have that ``data.interpolation``. tf.data reads
a TFRecord file that is written for the purpose, in just that order, and cuts with ``decode_and_crop_jpeg``. The pack is
written for the purpose, too; its size is printed. Needs TensorFlow (``pip install ".[prepare]"``); without it, the
ratios to tf.data are left out.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.data import Photographs
from resnet_jax.data.crops import RandomResized
from resnet_jax.data.dataset import Share
from resnet_jax.data.decode.images import image_size
from resnet_jax.data.order import example_indices
from resnet_jax.data.pack import write_pack
from resnet_jax.data.sources.protocol import Source
from resnet_jax.data.streamed import StreamedDataset

BATCH_SIZE, SIZE, SEED = 64, 224, 0
CROP = RandomResized()
Stream = Iterator[np.ndarray]


def our_stream(dataset: StreamedDataset) -> Stream:
    """Batches of images of the trainer's own pipeline."""
    return (batch["image"] for batch in dataset.training_batches(SEED, BATCH_SIZE, 0, 1_000_000, Share()))


def tf_data_stream(path: Path, threads: int) -> Stream:
    """Batches of tf.data, over and over the file that ``write_tfrecords`` wrote."""
    import tensorflow as tf

    features = {"image": tf.io.FixedLenFeature([], tf.string), "box": tf.io.FixedLenFeature([4], tf.int64)}

    def load(serialized: Any) -> Any:
        record = tf.io.parse_single_example(serialized, features)
        image = tf.image.decode_and_crop_jpeg(record["image"], tf.cast(record["box"], tf.int32), channels=3)
        return tf.cast(tf.image.resize(image, (SIZE, SIZE)), tf.uint8)

    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    stream = tf.data.TFRecordDataset(str(path)).repeat().map(load, num_parallel_calls=threads, deterministic=True)
    stream = stream.batch(BATCH_SIZE, drop_remainder=True).prefetch(2).with_options(options)
    return stream.as_numpy_iterator()


def write_tfrecords(path: Path, source: Source, count: int) -> None:
    """The first ``count`` photographs of training, with the boxes that our pipeline cuts out of them."""
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as writer:
        for position, index in enumerate(example_indices(SEED, np.arange(count), len(source))):
            image = source[int(index)]["image"]
            box = CROP.box(np.random.default_rng((SEED, position)), *image_size(image), SIZE)
            feature = {
                "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
                "box": tf.train.Feature(int64_list=tf.train.Int64List(value=box)),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


def measure(make_stream: Callable[[], Stream], seconds: float) -> float:
    """Images/s once the pipeline is full, and the threads of the last one have ended."""
    for _ in range(50):
        before = time.process_time()
        time.sleep(0.2)
        if time.process_time() - before < 0.01:
            break
    stream = make_stream()
    for _ in itertools.islice(stream, 8):  # What was made ahead of time is not counted.
        pass
    start, images = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        images += len(next(stream))
    return images / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--name", default="imagenet2012", help="of the data set; not a pack")
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shorter_side", type=int, default=480, help="of the pack")
    arguments = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    settings = Photographs(name=arguments.name, crop=CROP, crop_size=SIZE, threads=threads)
    photographs = settings.load(arguments.data_dir)
    source = photographs.source("train")
    with tempfile.TemporaryDirectory() as folder:
        write_pack(source, Path(folder), "train", arguments.shorter_side, photographs.class_names)
        packed = settings.model_copy(update={"name": "packed"}).load(folder)
        bytes_a_photograph = (Path(folder) / "train.bin").stat().st_size / packed.num_train
        encoded = statistics.mean(len(source[i]["image"]) for i in range(min(1000, len(source))))
        sides: dict[str, Callable[[], Stream]] = {
            "JPEG": partial(our_stream, photographs),
            **{
                f"JPEG, {how}": partial(
                    our_stream, settings.model_copy(update={"interpolation": how}).load(arguments.data_dir)
                )
                for how in ("bilinear", "bicubic")
            },
            "pack": partial(our_stream, packed),
        }
        try:
            write_tfrecords(Path(folder) / "tfrecord", source, count=20 * BATCH_SIZE)
            sides["tf.data"] = partial(tf_data_stream, Path(folder) / "tfrecord", threads)
            pairs = zip(next(sides["JPEG"]()), next(sides["tf.data"]()), strict=True)
            apart = statistics.mean(float(np.abs(ours.astype(int) - theirs).mean()) for ours, theirs in pairs)
            print(f"the same crops: {apart:.1f} of 255 levels between ours and tf.data's, on average")
        except ModuleNotFoundError:
            print('TensorFlow is not installed (pip install ".[prepare]"): no comparison')
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(arguments.rounds):
            for name, make_stream in sides.items():
                speeds[name].append(measure(make_stream, arguments.seconds))
            print(f"round {number + 1}: " + ", ".join(f"{name} {speeds[name][-1]:.0f}" for name in sides), flush=True)

    print(f"\n{platform.processor() or platform.machine()}, {threads} threads on as many cores, {len(source)} ", end="")
    print(f"photographs of {encoded / 1000:.0f} kB on average, medians of {arguments.rounds}\n")
    print(
        "| | images/s (min-max) | images/s per core | ratio to tf.data | disk per photograph |\n|---|---|---|---|---|"
    )
    disk_kb = {name: round((bytes_a_photograph if name == "pack" else encoded) / 1000) for name in speeds}
    for name, values in speeds.items():
        beside = speeds.get("tf.data", [float("nan")] * len(values))
        ratio = statistics.median(a / b for a, b in zip(values, beside, strict=True))
        print(
            f"| {name} | {statistics.median(values):.0f} ({min(values):.0f}-{max(values):.0f}) "
            f"| {statistics.median(values) / threads:.0f} | {ratio:.2f} | {disk_kb[name]} kB |"
        )
    title = f"{threads} core{'' if threads == 1 else 's'}"
    print(json.dumps({"title": title, "images_per_second": speeds, "disk_kB": disk_kb}))


if __name__ == "__main__":
    main()
