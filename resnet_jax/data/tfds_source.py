"""TensorFlow Datasets as random-access sources: found, checked, and prepared where TensorFlow allows."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.data.class_names import readable_names
from resnet_jax.data.tfrecord import TFRecordSource, index_records
from resnet_jax.errors import UserError, one_line

_FORMATS = ("array_record", "tfrecord")  # Those read here, the best one first.


def resolve_data_dir(data_dir: str | None) -> Path:
    """The folder of prepared data sets: the argument, else TFDS_DATA_DIR, else TFDS's own default."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def open_builder(name: str, data_dir: str | None) -> Any:
    """The TFDS builder of a prepared data set; prepares it first if it must and can.

    A data set may be prepared as array_record, which is preferred, or as TFRecord, TFDS's default. Raises UserError,
    naming the one command to run, when it is not prepared and TensorFlow is missing.
    """
    folder = resolve_data_dir(data_dir)
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


class TfdsSource:
    """``len`` and ``[i]`` giving {"image", "label": int, "name": str}; see ``open_split``. Can be pickled."""

    def __init__(self, records: Any, shards: Sequence[Any], split: str, features: Any, encoded: bool) -> None:
        self._records = records
        self._files = [shard.filename for shard in shards]
        self._ends = np.cumsum([shard.take for shard in shards])
        self._split = split
        self._parse = _parse_encoded if encoded else features.deserialize_example_np

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not 0 <= i < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        try:
            record = self._parse(self._records[i])
            image, label = record["image"], int(record["label"])
        except UserError:
            raise
        except Exception as error:  # array_record, protobuf and the image decoders each have their own.
            file = self._files[np.searchsorted(self._ends, i, side="right")]
            raise _unreadable(file, error) from error
        name = record["file_name"].decode(errors="replace") if "file_name" in record else f"{self._split}[{i}]"
        return {"image": image, "label": label, "name": name}


def _parse_encoded(data: bytes) -> dict[str, Any]:
    """The fields of a tf.train.Example as they are stored, in a third of the time that TFDS takes."""
    from tensorflow_datasets.proto import tf_example_pb2

    fields = tf_example_pb2.Example.FromString(data).features.feature
    kinds = {key: value.WhichOneof("kind") for key, value in fields.items()}
    lists = {key: getattr(fields[key], kind).value for key, kind in kinds.items() if kind}
    return {key: values[0] for key, values in lists.items() if values}


def open_split(builder: Any, split: str, encoded: bool = False) -> TfdsSource:
    """A source: ``len`` and ``[i]`` giving {"image": (H, W, 3) uint8, "label": int, "name": str}.

    ``encoded``: images are the bytes of their PNG or JPEG files instead. ``split`` may be a part: "train[:90%]".
    Raises UserError, here or from ``[i]``, for a missing, truncated or corrupt file.
    """
    shards = _split_info(builder, split).file_instructions
    if not shards:
        raise UserError(f"split {split!r} of data set {builder.name!r} is empty; choose another")
    tfrecord = builder.info.file_format.value == "tfrecord"
    records = _open_tfrecords(shards, f"{builder.name}-{split}") if tfrecord else _open_array_records(shards)
    return TfdsSource(records, shards, split, builder.info.features, encoded)


def class_names(builder: Any) -> list[str]:
    """The names of the classes in the order of their labels; those of ImageNet in words."""
    return readable_names(builder.info.features["label"].names)


def unreadable(builder: Any, split: str, error: BaseException) -> UserError:
    """The error for a truncated or corrupt file of a data set."""
    if isinstance(error, UserError):  # A source names the very file.
        return error
    files = split_files(builder, split)
    named = str(files[0]) if len(files) == 1 else f"{builder.data_path}/{builder.name}-{split}*"
    return _unreadable(named, error)


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
    # Characters of a part of a split, "train[:90%]", do not suit the name of a file in the cache.
    index = index_records(files, re.sub(r"[^\w.-]+", "_", name).strip("_"))
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
    return list((folder / name).glob("[0-9]*/dataset_info.json"))


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
            f"preparing {name!r} in {folder} failed (see above); mend that and run: {_command(name, folder)}"
        )
