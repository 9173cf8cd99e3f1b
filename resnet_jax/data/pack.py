"""Decodes photographs once: ``python -m resnet_jax.data.pack imagenet2012 --data_dir DIR --out DIR``.

Training then reads raw pixels, with --config.data.kind=photographs --config.data.name=packed --config.data_dir=OUT.
"""

import argparse
import math
import os
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from resnet_jax.data.decode.boxes import whole_box
from resnet_jax.data.decode.images import UnreadableImage, crop_and_resize, image_size
from resnet_jax.data.sources import open_photographs
from resnet_jax.data.sources.packed import SPLITS, files, open_pack
from resnet_jax.data.sources.protocol import Source
from resnet_jax.errors import UserError, one_line
from resnet_jax.files import expanded, replace_atomically

_SAMPLE = 64  # Photographs whose mean size tells what the pack will need.


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", help='"folder", "csv", "jsonl", "huggingface", or a data set of TensorFlow Datasets')
    parser.add_argument("--data_dir", help="where it is; default TFDS_DATA_DIR or ~/tensorflow_datasets")
    parser.add_argument("--out", required=True, type=Path, help="the folder of the pack")
    parser.add_argument(
        "--shorter_side", type=int, default=480, help="pixels to which it is reduced; 480 is all the paper's crops use"
    )
    parser.add_argument("--splits", nargs="+", choices=SPLITS, help="default: all but test where there is validation")
    arguments = parser.parse_args()
    try:
        if arguments.shorter_side < 1:
            raise UserError(f"--shorter_side is {arguments.shorter_side}; it must be at least 1")
        photographs = open_photographs(arguments.name, arguments.data_dir)
        scored = "validation" if "validation" in photographs.splits else "test"
        for split in arguments.splits or ("train", *({scored} & set(photographs.splits))):
            source = photographs.open_split(split)
            write_pack(source, expanded(arguments.out), split, arguments.shorter_side, photographs.class_names)
    except UserError as error:
        sys.exit(f"error: {error}")


def write_pack(
    source: Source,
    folder: Path,
    split: str,
    shorter_side: int,
    class_names: Sequence[str],
    threads: int | None = None,
) -> None:
    """Packs a source, in its order, each photograph's shorter side reduced to ``shorter_side`` pixels if it is longer.

    Names on stderr the photographs that cannot be decoded, and leaves them out. One pack of the same number of records,
    shorter side and classes is kept as it is; an unfinished one is begun again. Raises UserError for another pack in
    its place, too little space on the disk, or a source of which nothing can be decoded.
    """
    pixels, entry = files(folder, split)
    if entry.exists():
        found = open_pack(folder, split)
        if (found.shorter_side, found.num_records, found.class_names) != (shorter_side, len(source), [*class_names]):
            raise UserError(
                f"{folder}/{split} is a pack of {found.num_records} photographs, {len(found.class_names)} classes and "
                f"shorter side {found.shorter_side}, not the same; choose another folder or delete {entry}"
            )
        print(f"{folder}/{split} is packed already: {len(found):,} images", flush=True)
        return
    start = time.monotonic()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pixels.unlink(missing_ok=True)  # Of a pack that was interrupted; its space counts as free.
        _check_space(source, folder, shorter_side)
        index = _write_pixels(source, pixels, shorter_side, threads or os.cpu_count() or 1, f"packing {split}")
        if not len(index["labels"]):
            raise UserError(f"none of the {len(source)} photographs to pack can be decoded; see above")
        described = {"class_names": np.array(class_names), "shorter_side": shorter_side, "num_records": len(source)}
        saved: dict[str, Any] = index | described
        with replace_atomically(entry) as file:
            np.savez(file, **saved)
    except OSError as error:
        raise UserError(f"cannot pack into {folder} ({one_line(error)}); choose another folder") from error
    seconds = time.monotonic() - start
    count, gib = len(index["labels"]), pixels.stat().st_size / 2**30
    left_out = len(source) - count
    print(
        f"{folder}/{split}: {count:,} images, {gib:.2f} GiB, {count / seconds:.0f} images/s"
        + (f", {left_out:,} left out" if left_out else ""),
        flush=True,
    )


def packed_size(height: int, width: int, shorter_side: int) -> tuple[int, int]:
    """(height, width) in the pack: the shorter side is reduced to ``shorter_side``, and never enlarged."""
    scale = min(1.0, shorter_side / min(height, width))
    return round(height * scale), round(width * scale)


class _Packed(NamedTuple):
    """A photograph in the pack; its pixels (H, W, 3) uint8, or why there are none."""

    pixels: np.ndarray | UnreadableImage
    label: int
    name: str


def _pack_one(source: Source, shorter_side: int, i: int) -> _Packed:
    record = source[i]
    image, label, name = record["image"], record["label"], record["name"]
    try:
        size = packed_size(*image_size(image), shorter_side)
        return _Packed(np.ascontiguousarray(crop_and_resize(image, whole_box, size)), label, name)
    except UnreadableImage as error:
        return _Packed(error, label, name)


def _write_pixels(source: Source, path: Path, shorter_side: int, threads: int, title: str) -> dict[str, np.ndarray]:
    """Writes SPLIT.bin, and gives the arrays that tell the images in it apart."""
    sizes, labels, names = [], [], []
    with path.open("wb") as file:
        packed = _in_order(partial(_pack_one, source, shorter_side), len(source), threads)
        for pixels, label, name in tqdm(packed, title, len(source), unit=" images", delay=1, mininterval=1):
            if isinstance(pixels, UnreadableImage):
                tqdm.write(f"warning: {name} cannot be decoded ({one_line(pixels)}) and is left out", sys.stderr)
                continue
            file.write(pixels)
            sizes.append(pixels.shape[:2])
            labels.append(label)
            names.append(name.encode(errors="surrogateescape"))
        file.flush()
        os.fsync(file.fileno())  # Before the index says that the images are there.
    heights, widths = np.array(sizes, np.int32).reshape(-1, 2).T
    lengths = heights.astype(np.int64) * widths * 3
    return {
        "offsets": np.cumsum(lengths) - lengths,
        "heights": heights,
        "widths": widths,
        "labels": np.array(labels, np.int32),
        "names": np.array(names, np.bytes_),
    }


def _in_order(function: Callable[[int], _Packed], count: int, threads: int) -> Iterator[_Packed]:
    """Maps 0 to ``count`` - 1, some ahead of time; unlike ``Executor.map`` it holds only those in memory."""
    waiting: deque[Future[_Packed]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for i in range(count):
            waiting.append(pool.submit(function, i))
            if len(waiting) >= 4 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _check_space(source: Source, folder: Path, shorter_side: int) -> None:
    sizes = []
    for i in range(0, len(source), math.ceil(len(source) / _SAMPLE) or 1):
        try:
            sizes.append(packed_size(*image_size(source[i]["image"]), shorter_side))
        except UnreadableImage:
            continue
    if not sizes:
        return
    needed = len(source) * 3 * float(np.prod(sizes, axis=1).mean()) / 2**30
    free = shutil.disk_usage(folder).free / 2**30
    if needed > free:
        raise UserError(
            f"packing {len(source):,} photographs needs about {needed:.1f} GiB and {folder} has {free:.1f} GiB free; "
            f"choose another folder or a smaller shorter side"
        )


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the program at once, without a traceback.
    main()
