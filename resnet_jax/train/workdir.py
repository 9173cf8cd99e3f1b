"""The folder of a run: its config, and the versions and hardware it ran with."""

import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax

from resnet_jax.errors import UserError, one_line
from resnet_jax.files import replace_atomically

PACKAGES = (
    "resnet_jax",
    "jax",
    "jaxlib",
    "grain",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "pydantic",
    "ml_collections",
    "tensorflow-datasets",
    "array_record",
)


def prepare_workdir(
    workdir: Path,
    config: str,
    save_normalization: Callable[[Path], None],
    class_names: list[str],
    image_shape: tuple[int, int, int],
    start: dict[str, object] | None = None,
    passed_data: str | None = None,
) -> None:
    """Writes what tells how the run came about and what using its checkpoints takes.

    ``config.json`` with the text ``config`` (an earlier one is kept as ``config.N.json``), ``environment.json``,
    ``class_names.json``, ``image_shape.json`` (height, width and channels of a training image), and
    ``normalization.npz``, which ``save_normalization`` writes. ``init.json`` holds ``start``: which weights a new run
    starts from. A new run that starts at random has {}, and removes it; a resumed run has None, and keeps it.
    ``data.json`` is there where a program passed the data, called ``passed_data``, instead of those of the config.

    Raises UserError if the folder cannot be written.
    """
    path = workdir / "config.json"
    try:
        if path.exists() and path.read_text() != config:
            number = 1
            while (workdir / f"config.{number}.json").exists():
                number += 1
            _write(workdir / f"config.{number}.json", path.read_text())
        write_description(workdir, config, save_normalization, class_names, image_shape)
        _write(workdir / "environment.json", json.dumps(_environment(), indent=2) + "\n")
        if start:
            _write(workdir / "init.json", json.dumps(start, indent=2) + "\n")
        elif start is not None:
            (workdir / "init.json").unlink(missing_ok=True)
        if passed_data is None:
            (workdir / "data.json").unlink(missing_ok=True)
        else:
            _write(workdir / "data.json", json.dumps({"passed": passed_data}) + "\n")
    except OSError as error:
        raise _not_writable(workdir, error) from None


def write_description(
    folder: Path,
    config: str,
    save_normalization: Callable[[Path], None],
    class_names: list[str],
    image_shape: tuple[int, int, int],
) -> None:
    """Writes the files of ``prepare_workdir`` that using trained weights takes. Raises OSError."""
    _write(folder / "config.json", config)
    _write(folder / "class_names.json", json.dumps(class_names, indent=0) + "\n")
    _write(folder / "image_shape.json", json.dumps(image_shape) + "\n")
    save_normalization(folder / "normalization.npz")


def initial_record(workdir: Path) -> dict[str, object]:
    """What ``init.json`` says; nothing for a run that started at random. Raises UserError if it cannot be read."""
    path = workdir / "init.json"
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged ({one_line(error)}); restore it") from None


def refuse_config_data(workdir: Path) -> None:
    """Raises UserError if the run in ``workdir`` was trained on data that a program passed, and not on config.data."""
    if (workdir / "data.json").exists():
        raise UserError(
            f"{workdir} holds a run on data that its program passed, which may not be those of its config; pass them "
            f"again from Python (data=...), use another workdir, or pass --allow_config_change"
        )


def refuse_other_classes(workdir: Path, class_names: list[str]) -> None:
    """Raises UserError if the run in ``workdir`` has other classes, or the same in another order."""
    path = workdir / "class_names.json"
    if path.exists() and read_class_names(workdir) != class_names:
        raise UserError(f"the data have other classes than {path}; use the run's own data, or another workdir")


def read_class_names(workdir: Path) -> list[str]:
    """The class names of a run, in the order of their labels. Raises UserError if they cannot be read."""
    path = workdir / "class_names.json"
    try:
        names = json.loads(path.read_text())
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("it is not a list of names")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged ({one_line(error)}); restore it") from None
    return names


def read_image_shape(workdir: Path) -> tuple[int, int, int]:
    """(height, width, channels) of a run's training images. Raises UserError if it cannot be read."""
    path = workdir / "image_shape.json"
    try:
        height, width, channels = map(int, json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is missing or damaged ({one_line(error)}); restore it") from None
    return height, width, channels


def check_path(workdir: Path) -> None:
    """Raises UserError where checkpoints in ``workdir`` could not be read again, because of its path.

    Orbax searches the folder that it writes by a pattern that begins with its path, and its path must be UTF-8.
    """
    path = str(workdir.absolute())
    special = [character for character in "*?[\\" if character in path]
    if special or not _is_utf8(path):
        what = f"has {' and '.join(special)} in it" if special else "is not UTF-8"
        raise UserError(f"checkpoints cannot be kept in {path!r}, which {what}; use another path")


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the folder, which it makes if need be, for this process; the lock ends with the process, however it ends.

    Raises UserError if another process trains in it, or if it cannot be made.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / ".lock").open("w")
    except OSError as error:
        raise _not_writable(workdir, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process trains in {workdir}; wait for it, or use another --workdir") from None
        except OSError:  # Some network file systems have no locks.
            pass
        yield


def _not_writable(workdir: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to workdir {workdir} ({error.strerror}); choose another --workdir")


def _write(path: Path, text: str) -> None:
    with replace_atomically(path) as file:
        file.write(text.encode())


def _environment() -> dict[str, object]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "command": sys.argv,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
        "packages": versions,
    }


def processor_name() -> str:
    """What the host computes with, as in "2 cores of AMD EPYC 7B13"."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} core{'' if cores == 1 else 's'} of {name}"


def _commit() -> str | None:
    """The commit of the checkout that this package lies in; None if it is not one, or git is missing."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
