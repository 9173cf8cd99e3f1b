"""TensorFlow Datasets as random-access sources: found, checked, and prepared where TensorFlow allows."""

import difflib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from resnet_jax.data.cache import cached_arrays
from resnet_jax.data.class_names import readable_names
from resnet_jax.data.sources.protocol import Images, Opened, Split
from resnet_jax.data.sources.tfrecord import TFRecordSource, index_records
from resnet_jax.errors import UserError, one_line
from resnet_jax.files import expanded

_FORMATS = ("array_record", "tfrecord")  # Those read here, the best one first.
_SPLITS = ("train", "validation", "test")
_OWN = ("digits", "folder", "packed", "csv", "jsonl", "huggingface")  # Names of other sources.
Parsed = TypeVar("Parsed")
_NAME_FIELDS = ("file_name", "filename")  # What data sets call the name of a photograph's file.


def load_images(name: str, data_dir: str | None) -> Images:
    """Its splits "train", and "validation" and "test" where there are, decoded once and kept in the cache.

    Raises UserError where it is not found, or its images are of several sizes.
    """
    builder = open_builder(name, data_dir)
    return Images({split: _load_split(builder, split) for split in _splits(builder)}, class_names(builder))


def open_photographs(name: str, data_dir: str | None) -> Opened:
    """Its splits "train", and "validation" and "test" where there are. Raises UserError where it is not found."""
    builder = open_builder(name, data_dir)
    return Opened(_splits(builder), partial(open_split, builder, encoded=True), class_names(builder))


def _splits(builder: Any) -> tuple[str, ...]:
    return tuple(split for split in _SPLITS if split in builder.info.splits)


def _load_split(builder: Any, split: str) -> Split:
    def decode() -> tuple[np.ndarray, np.ndarray]:
        source = open_split(builder, split)
        labels = np.empty(len(source), np.int32)
        images = np.empty(0, np.uint8)
        title = f"decoding {builder.name} {split} (once)"
        for i in tqdm(range(len(source)), title, unit=" images", delay=1, mininterval=1):
            record = source[i]
            image, labels[i] = record["image"], record["label"]
            if i == 0:
                images = np.empty((len(source), *image.shape), np.uint8)
            if image.shape != images.shape[1:] or image.dtype != np.uint8:
                raise UserError(
                    f"data set {builder.name!r} has images of several sizes or not of bytes ({image.dtype} of shape "
                    f"{image.shape}); set config.data.kind=photographs"
                )
            images[i] = image
        return images, labels

    return Split(*cached_arrays(f"{builder.name}-{split}", split_files(builder, split), decode))


def resolve_data_dir(data_dir: str | None) -> Path:
    """The folder of prepared data sets: the argument, else TFDS_DATA_DIR, else TFDS's own default."""
    return expanded(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def open_builder(name: str, data_dir: str | None) -> Any:
    """The TFDS builder of a prepared data set; prepares it first if it must and can.

    A data set may be prepared as array_record, which is preferred, or as TFRecord, TFDS's default. Raises UserError,
    naming the one command to run, when it is not prepared and TensorFlow is missing.
    """
    folder = resolve_data_dir(data_dir)
    if data_dir is not None and not folder.is_dir():  # Mistyped: to download into a new folder would not be the fix.
        raise UserError(
            f"config.data_dir {folder} does not exist; correct it, or download the data set there: "
            f"{_command(name, folder)}"
        )
    if not _descriptions(folder, name):
        _prepare(name, folder)
    # Imported here because the digits need none of it and start faster without.
    import tensorflow_datasets as tfds

    try:
        version, file_format = _preferred(folder, name)
        # Not tfds.builder: it looks only for the version that the installed TFDS would prepare.
        builder = tfds.builder_from_directory(version)
        # Elsewhere than in the default format when the data set was converted in place.
        builder.info.set_file_format(file_format, override=True, override_if_initialized=True)
        if not builder.info.splits:
            raise ValueError("it has no splits")
    except UserError:
        raise
    except Exception as error:  # TFDS raises its parser's and file system's exceptions as they come.
        raise UserError(
            f"data set {name!r} in {folder} cannot be read ({one_line(error)}); "
            f"delete {folder / name} and prepare it again: {_command(name, folder)}"
        ) from error
    return builder


class TfdsRecords:
    """The serialised records of a split and where they are. Can be pickled."""

    def __init__(self, records: Any, shards: Sequence[Any], split: str) -> None:
        self._records = records
        self._files = [shard.filename for shard in shards]
        self._ends = np.cumsum([shard.take for shard in shards])
        self._split = split

    def __len__(self) -> int:
        return len(self._records)

    def read(self, i: int, parse: Callable[[bytes], Parsed]) -> Parsed:
        """What ``parse`` makes of record i. Raises UserError, naming the file, where either fails."""
        if not 0 <= i < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        try:
            return parse(self._records[i])
        except UserError:
            raise
        except Exception as error:  # array_record, protobuf and the image decoders each have their own.
            file = self._files[np.searchsorted(self._ends, i, side="right")]
            raise _unreadable(file, error) from error

    def name(self, i: int) -> str:
        """For people, where a record has no name of its own."""
        return f"{self._split}[{i}]"

    def files(self) -> list[Path]:
        """The files of the split."""
        return [Path(file) for file in self._files]


class TfdsSource:
    """``len`` and ``[i]`` giving {"image", "label": int, "name": str}; see ``open_split``. Can be pickled."""

    shorter_side: int | None = None

    def __init__(self, records: TfdsRecords, features: Any, encoded: bool) -> None:
        self._records = records
        self._image_key, self._label_key = _keys(features)
        self._parse = _parse_encoded if encoded else features.deserialize_example_np

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> dict[str, Any]:
        image, label, named = self._records.read(i, self._fields)
        name = self._records.name(i) if named is None else named.decode(errors="replace")
        return {"image": image, "label": label, "name": name}

    def _fields(self, data: bytes) -> tuple[Any, int, bytes | None]:
        record = self._parse(data)
        named = next((record[key] for key in _NAME_FIELDS if isinstance(record.get(key), bytes)), None)
        return record[self._image_key], int(record[self._label_key]), named

    def labels(self) -> np.ndarray:
        """(N,) int32; every record is read for them."""
        return np.array([self._records.read(i, self._fields)[1] for i in range(len(self))], np.int32)

    def files(self) -> list[Path]:
        """The files of the split."""
        return self._records.files()


def _keys(features: Any) -> tuple[str, str]:
    """What the features call the image and the label: just so, or the only one of its type.

    Raises UserError for a data set that is not for classification.
    """
    import tensorflow_datasets as tfds

    found = []
    for key, kind in (("image", tfds.features.Image), ("label", tfds.features.ClassLabel)):
        keys = [name for name, feature in features.items() if isinstance(feature, kind)]
        if key not in keys and len(keys) != 1:
            has = ", ".join(features) or "nothing"
            raise UserError(
                f"the data set has no feature {key!r} and not just one {kind.__name__} in its place, but {has}; choose "
                f"a data set for classification"
            )
        found.append(key if key in keys else keys[0])
    return found[0], found[1]


def parse_lists(data: bytes) -> dict[str, Any]:
    """The fields of a tf.train.Example as they are stored, lists, in a third of the time that TFDS takes."""
    from tensorflow_datasets.proto import tf_example_pb2

    fields = tf_example_pb2.Example.FromString(data).features.feature
    kinds = {key: value.WhichOneof("kind") for key, value in fields.items()}
    return {key: getattr(fields[key], kind).value for key, kind in kinds.items() if kind}


def _parse_encoded(data: bytes) -> dict[str, Any]:
    """The first of each field that is not empty."""
    return {key: values[0] for key, values in parse_lists(data).items() if values}


def open_split(builder: Any, split: str, encoded: bool = False) -> TfdsSource:
    """A source: ``len`` and ``[i]`` giving {"image": (H, W, C) uint8, "label": int, "name": str}.

    ``encoded``: images are the bytes of their PNG or JPEG files instead. ``split`` may be a part: "train[:90%]".
    Raises UserError, here or from ``[i]``, for a missing, truncated or corrupt file.
    """
    return TfdsSource(open_records(builder, split), builder.info.features, encoded)


def open_records(builder: Any, split: str) -> TfdsRecords:
    """The records of a split or of a part of one. Raises UserError as ``open_split`` does."""
    shards = _split_info(builder, split).file_instructions
    if not shards:
        raise UserError(f"split {split!r} of data set {builder.name!r} is empty; choose another")
    tfrecord = builder.info.file_format.value == "tfrecord"
    records = _open_tfrecords(shards, f"{builder.name}-{split}") if tfrecord else _open_array_records(shards)
    return TfdsRecords(records, shards, split)


def class_names(builder: Any) -> list[str]:
    """The names of the classes in the order of their labels; those of ImageNet in words."""
    return readable_names(builder.info.features[_keys(builder.info.features)[1]].names)


def split_files(builder: Any, split: str) -> list[Path]:
    """The files that hold a split, of those that are there, sorted."""
    return [path for path in map(Path, _split_info(builder, split).filepaths) if path.exists()]


def _split_info(builder: Any, split: str) -> Any:
    try:
        return builder.info.splits[split]
    except (KeyError, ValueError) as error:
        known = ", ".join(builder.info.splits)
        raise UserError(f"data set {builder.name!r} has no split {split!r}; it has {known}") from error


def _open_array_records(shards: Sequence[Any]) -> Any:
    """The records that the shards (TFDS's FileInstructions) select."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource  # type: ignore[import-untyped]

    for shard in shards:  # They are opened when a record is read, which may be hours later.
        if not Path(shard.filename).exists():
            raise UserError(f"data file {shard.filename} is missing; copy or prepare it again")
    return ArrayRecordDataSource(shards)


def _open_tfrecords(shards: Sequence[Any], name: str) -> TFRecordSource:
    """The records that the shards (TFDS's FileInstructions) select."""
    files = [Path(shard.filename) for shard in shards]
    index = index_records(files, name)
    counts = np.bincount(index["file"], minlength=len(files))
    for shard, count in zip(shards, counts, strict=True):
        if count != shard.examples_in_shard:
            raise UserError(
                f"data file {shard.filename} holds {count} records, not {shard.examples_in_shard} as dataset_info.json "
                f"says; copy or prepare it again"
            )
    starts = np.cumsum(counts) - counts
    parts = [
        index[start + shard.skip : start + shard.skip + shard.take] for start, shard in zip(starts, shards, strict=True)
    ]
    return TFRecordSource(files, np.concatenate(parts))


def _unreadable(file: str, error: BaseException) -> UserError:
    return UserError(f"data file {file} is missing, truncated or corrupt ({one_line(error)}); prepare it again")


def _descriptions(folder: Path, name: str) -> list[Path]:
    """Of the versions that are prepared; a preparation that was cut short has a folder incomplete.*."""
    found = list((folder / name).glob("[0-9]*/dataset_info.json"))
    if not found and "/" not in name:  # It may have configurations, such as emnist/letters.
        found = list((folder / name).glob("*/[0-9]*/dataset_info.json"))
        names = sorted({f"{name}/{path.parent.parent.name}" for path in found})
        if len(names) > 1:
            raise UserError(f"data set {name!r} in {folder} is prepared as {', '.join(names)}; name one of them")
    return found


def _preferred(folder: Path, name: str) -> tuple[Path, str]:
    """The folder and format to read: the newest version in the best format."""
    found = []
    for description in _descriptions(folder, name):
        info = json.loads(description.read_text())
        version = [int(number) for number in re.findall(r"\d+", description.parent.name)]
        for file_format in [info.get("fileFormat") or "tfrecord", *info.get("alternativeFileFormats", [])]:
            if file_format in _FORMATS:
                found.append((-_FORMATS.index(file_format), version, description.parent, file_format))
    if not found:
        raise UserError(
            f"data set {name!r} in {folder} is not prepared as {' or '.join(_FORMATS)}; prepare it in another "
            f"data_dir: {_command(name, Path('OTHER_DIR'))}"
        )
    return max(found)[2:]


def _command(name: str, folder: Path) -> str:
    return f"pip install tensorflow && python -m resnet_jax.data.prepare {name} --data_dir {folder}"


def _prepare(name: str, folder: Path) -> None:
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if name.split("/")[0] not in known:
        close = difflib.get_close_matches(name, [*known, *_OWN], n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"use {', '.join(_OWN)} or one of those"
        raise UserError(f"config.data.name is {name!r}, which is not a data set of TensorFlow Datasets; {hint}")
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"data set {name!r} is not prepared in {folder}; set --config.data_dir or TFDS_DATA_DIR, or run: "
            f"{_command(name, folder)}"
        )
    print(f"preparing {name} in {folder}", file=sys.stderr, flush=True)
    # A child process, because TensorFlow would otherwise stay in this one and claim its accelerator's memory.
    child = subprocess.run([sys.executable, "-m", "resnet_jax.data.prepare", name, "--data_dir", str(folder)])
    if child.returncode:
        raise UserError(
            f"preparing {name!r} in {folder} failed (see above); fix that and run: {_command(name, folder)}"
        )
