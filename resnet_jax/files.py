"""Atomic writes of files."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replace_atomically(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that replaces ``path`` atomically when the block ends, flushed to disk and readable by all.

    When the block fails or the process is killed, the previous file stays.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".tmp", delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)  # Temporary files are the owner's alone.
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
