"""Arrays on disk that take long to make, so that a second start does not decode 50,000 files again."""

import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.files import expanded, replace_atomically

Arrays = tuple[np.ndarray, ...]


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/resnet_jax``, by default ``~/.cache/resnet_jax``; a temporary folder where there is no home."""
    try:
        return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "resnet_jax"
    except UserError:
        return Path(tempfile.gettempdir()) / f"resnet_jax-{os.getuid()}"


def cached_arrays(
    name: str, files: Iterable[Path], make: Callable[[], Arrays], keys: tuple[str, ...] = ("images", "labels")
) -> Arrays:
    """One array for each key: from the cache if it holds them for exactly these files, else from ``make``, then cached.

    The entry is called ``name`` and the files' fingerprint, so a data set prepared anew is read anew. A damaged entry
    is made again. Where the cache cannot be written, a warning says so and the program continues.
    """
    # Characters of a part of a split, "train[:90%]", do not suit the name of a file.
    plain = re.sub(r"[^\w.-]+", "_", name).strip("_")
    entry = cache_dir() / f"{plain}-{fingerprint(files)}.npz"
    if os.path.exists(entry):  # Unlike pathlib's it raises nothing for a folder that may not be entered.
        try:
            with entry.open("rb") as opened, np.load(opened) as saved:
                return tuple(saved[key] for key in keys)
        except Exception as error:  # zipfile, zlib and numpy each have their own for a damaged file.
            print(f"warning: cache file {entry} is damaged ({error}); recomputing it", file=sys.stderr)
    arrays = make()
    named: dict[str, Any] = dict(zip(keys, arrays, strict=True))
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with replace_atomically(entry) as file:
            np.savez(file, **named)
    except OSError as error:
        print(f"warning: cannot write the cache {entry.parent} ({error.strerror})", file=sys.stderr)
    return arrays


def fingerprint(files: Iterable[Path]) -> str:
    """16 hexadecimal digits that differ for other files: of their paths, sizes and times of change, in any order."""
    folders: dict[Path, str] = {}  # Resolving the path of each of a million photographs would take minutes.
    digest = hashlib.sha256()
    for path in sorted(files):
        folder = folders.get(path.parent) or folders.setdefault(path.parent, str(path.parent.resolve()))
        found = path.stat()
        digest.update(repr((folder, path.name, found.st_size, found.st_mtime_ns)).encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]
