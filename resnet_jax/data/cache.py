"""Decoded splits on disk, so that a second start does not decode 50,000 files again."""

import hashlib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from resnet_jax.files import replace_atomically

Arrays = tuple[np.ndarray, np.ndarray]


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/resnet_jax``, by default ``~/.cache/resnet_jax``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "resnet_jax"


def cached_arrays(name: str, files: Iterable[Path], decode: Callable[[], Arrays]) -> Arrays:
    """Images and labels from the cache if it holds them for just these files, else from ``decode``, then cached.

    The entry is named after the files' paths, sizes and times of change, so a data set prepared anew is decoded anew.
    A damaged entry is decoded again. Where the cache cannot be written, a warning says so and training goes on.
    """
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(files)]
    fingerprint = hashlib.sha256(repr(stats).encode()).hexdigest()[:16]
    entry = cache_dir() / f"{name}-{fingerprint}.npz"
    if entry.exists():
        try:
            with entry.open("rb") as opened, np.load(opened) as saved:
                return saved["images"], saved["labels"]
        except Exception as error:  # zipfile, zlib and numpy each have their own for a damaged file.
            print(f"warning: cache file {entry} is damaged ({error}); decoding again", file=sys.stderr)
    images, labels = decode()
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with replace_atomically(entry) as file:
            np.savez(file, images=images, labels=labels)
    except OSError as error:
        print(f"warning: cannot cache the decoded images in {entry.parent} ({error.strerror})", file=sys.stderr)
    return images, labels
