"""Files that are written, and whether they can be."""

import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from resnet_jax.errors import UserError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # "gs://..."; one letter would be a drive.


def expanded(path: str | Path) -> Path:
    """The path with a ``~`` or ``~USER`` that it begins with replaced.

    Raises UserError where there is no such home, or where it is an address, such as gs://bucket/run, which would be
    taken for a folder here.
    """
    if _ADDRESS.match(str(path)):
        raise UserError(f"{path} is an address; download or mount what is there, and name it by its path")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path} begins with the home of a user who has none here; write the whole path") from None


@contextmanager
def replace_atomically(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that replaces ``path`` atomically when the block ends, flushed to disk.

    It is readable by all, or has the permissions of the file that it replaces. When the block fails or the process is
    killed, the previous file stays. A symbolic link stays, and what it points to is replaced; a pipe, a device and what
    this program prints to, such as /dev/stdout, are written to.
    """
    descriptor = _printed_to(path)
    if descriptor is not None:
        sys.stdout.flush()
        with os.fdopen(os.dup(descriptor), "wb") as file:
            yield file
        return
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    path = Path(os.path.realpath(path))
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644  # Temporary files are the owner's alone.
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name[:20]}.", suffix=".tmp", delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, mode)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _printed_to(path: Path) -> int | None:
    """The descriptor of the standard output or error, if ``path`` is where that goes."""
    for descriptor in (1, 2):
        try:
            if path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
        except OSError:  # It is closed.
            continue
    return None


def check_output(path: Path, appends: bool = False) -> None:
    """Raises UserError where a file cannot be written; with ``appends``, where it cannot be appended to."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file")
    place = path
    if not path.exists() or (path.is_file() and not appends):  # It comes, or is replaced, in its folder.
        place = next(parent for parent in Path(os.path.realpath(path)).parents if parent.exists())
        if not place.is_dir():
            raise UserError(f"{path} cannot be written, because {place} is no folder; name another file")
    if not os.access(place, os.W_OK):
        raise UserError(f"{path} cannot be written, because you may not write to {place}; name another file")
