"""Files that are whole or absent."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replace_atomically(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes ``path``'s place once the block is through, whole, on disk, and readable by all.

    When the block fails or the process is killed, what was there before stays.
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
