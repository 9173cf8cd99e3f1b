"""Files that are written, and whether they can be."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from resnet_jax.errors import UserError


@contextmanager
def replace_atomically(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that replaces ``path`` atomically when the block ends, flushed to disk and readable by all.

    When the block fails or the process is killed, the previous file stays. A symbolic link stays, and what it points to
    is replaced; a pipe or a device, such as /dev/stdout, is written to.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    path = Path(os.path.realpath(path))
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name[:20]}.", suffix=".tmp", delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)  # Temporary files are the owner's alone.
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def check_outputs(*paths: Path) -> None:
    """Raises UserError where these files cannot be written, or are not different ones. Nothing is written."""
    for number, path in enumerate(paths):
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if path.is_dir():
            raise UserError(f"{path} is a folder; name a file")
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise UserError(f"{path} cannot be written, because {folder} is no folder that can be written to")
        if os.path.realpath(path) in map(os.path.realpath, paths[:number]):
            raise UserError(f"{path} is given twice; name two files")
