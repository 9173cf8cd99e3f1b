"""TFRecord files with random access, without TensorFlow: an index of their records is made once and cached.

A record is its length (uint64, little-endian), a checksum of the length (uint32), the data, and a checksum of the data
(uint32); see https://www.tensorflow.org/tutorials/load_data/tfrecord.
"""

import os
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from resnet_jax.data.cache import cached_arrays
from resnet_jax.errors import UserError

# A record's data: the number of its file among the sorted ones, and the bytes in that file.
_RECORD = np.dtype([("file", np.int32), ("start", np.int64), ("length", np.int64)])
_HEADER, _FRAME = 12, 16  # Bytes before the data, and before and after it.
_THREADS = 16  # Indexing waits for the disk, or for the network behind it.


class TFRecordSource:
    """``len`` and ``[i]`` giving the bytes of record i. Holds nothing open, and can be pickled."""

    def __init__(self, files: Iterable[Path], index: np.ndarray) -> None:
        """``index``: all of ``index_records(files)`` or any part of it."""
        self.files = sorted(files)
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> bytes:
        number, start, length = self.index[i].item()
        # Opening costs microseconds, and more shards than a process may have open at once can be read.
        descriptor = os.open(self.files[number], os.O_RDONLY)
        try:
            data = os.pread(descriptor, length, start)
        finally:
            os.close(descriptor)
        if len(data) != length:
            raise _damaged(self.files[number])
        return data


def index_records(files: Iterable[Path], name: str) -> np.ndarray:
    """The places of all records of the files in sorted order: (N,) with the fields "file", "start" and "length".

    Only the lengths are read, once: the index is kept in the cache under ``name`` until a file changes. Raises
    UserError for a file that is missing or whose records do not add up to its size; the data are not checked.
    """
    files = sorted(files)
    missing = [path for path in files if not path.exists()]
    if missing:
        raise UserError(f"data file {missing[0]} is missing; copy or prepare it again")

    def walk_all() -> tuple[np.ndarray]:
        with ThreadPoolExecutor(_THREADS) as pool:
            walks = pool.map(_walk, files)
            indices = list(tqdm(walks, f"indexing {name} (once)", len(files), unit=" files", delay=1, mininterval=1))
        for number, index in enumerate(indices):
            index["file"] = number
        return (np.concatenate(indices),)

    return cached_arrays(f"{name}-index", files, walk_all, keys=("index",))[0]


def _walk(path: Path) -> np.ndarray:
    """The index of one file."""
    size, position = path.stat().st_size, 0
    records = []
    with path.open("rb", buffering=0) as file:
        while size - position >= _FRAME:
            (length,) = struct.unpack("<Q", os.pread(file.fileno(), 8, position))
            if not length:  # A hole in the file: no example is empty.
                break
            records.append((0, position + _HEADER, length))
            position += _FRAME + length
    if position != size:
        raise _damaged(path)
    return np.array(records, _RECORD)


def _damaged(path: Path) -> UserError:
    return UserError(f"data file {path} is truncated or corrupt; copy or prepare it again")
