"""The folder of a run: its config, and the versions and hardware it ran with."""

import importlib.metadata
import json
import platform
import sys
from pathlib import Path

import jax
from ml_collections import ConfigDict

from resnet_jax.errors import UserError
from resnet_jax.files import replace_atomically

PACKAGES = (
    "resnet_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "ml_collections",
    "tensorflow-datasets",
    "array_record",
)


def prepare_workdir(workdir: Path, config: ConfigDict) -> None:
    """Makes the folder with ``config.json`` and ``environment.json``; an earlier config is kept as ``config.N.json``.

    Raises UserError if the folder cannot be written.
    """
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    path = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.read_text() != text:
            number = 1
            while (workdir / f"config.{number}.json").exists():
                number += 1
            _write(workdir / f"config.{number}.json", path.read_text())
        _write(path, text)
        _write(workdir / "environment.json", json.dumps(_environment(), indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to workdir {workdir} ({error.strerror}); choose another --workdir") from None


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
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
        "packages": versions,
    }
