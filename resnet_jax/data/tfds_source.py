"""TensorFlow Datasets as random-access sources: found, checked, and prepared where TensorFlow allows."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_jax.errors import UserError, one_line


def resolve_data_dir(data_dir: str | None) -> Path:
    """The folder of prepared data sets: the argument, else TFDS_DATA_DIR, else TFDS's own default."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def open_builder(name: str, data_dir: str | None) -> Any:
    """The TFDS builder of a data set that is prepared as array_record; prepares it first if it must and can.

    Raises UserError, naming the one command to run, when the data set is not prepared and TensorFlow is missing.
    """
    folder = resolve_data_dir(data_dir)
    if not _versions(folder, name):
        _prepare(name, folder)
    # Imported here because the digits need none of it and start faster without.
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        splits = builder.info.splits
    except Exception as error:  # TFDS raises its parser's and file system's exceptions as they come.
        if "FileFormat" in str(error):
            raise _other_format(name, folder) from error
        raise UserError(
            f"data set {name!r} in {folder} cannot be read ({one_line(error)}); "
            f"delete {folder / name} and prepare it again: {_command(name, folder)}"
        ) from error
    if not splits:
        raise _other_format(name, folder)
    return builder


def open_split(builder: Any, split: str) -> Sequence[dict[str, Any]]:
    """A source: ``len`` and ``[i]`` giving {"image": (H, W, 3) uint8, "label": int, ...}."""
    try:
        return builder.as_data_source(split=split)
    except Exception as error:
        raise unreadable(builder, split, error) from error


def unreadable(builder: Any, split: str, error: BaseException) -> UserError:
    """The error for a truncated or corrupt file of a data set."""
    files = ", ".join(sorted(str(path) for path in split_files(builder, split))) or f"{builder.data_path}/*{split}*"
    return UserError(f"data file {files} is missing, truncated or corrupt ({one_line(error)}); prepare it again")


def split_files(builder: Any, split: str) -> list[Path]:
    """The files that hold a split."""
    return list(Path(builder.data_path).glob(f"{builder.name}-{split}.*"))


def _other_format(name: str, folder: Path) -> UserError:
    return UserError(
        f"data set {name!r} in {folder} is not prepared as array_record; prepare it in another data_dir: "
        f"{_command(name, Path('OTHER_DIR'))}"
    )


def _versions(folder: Path, name: str) -> list[Path]:
    return list((folder / name).glob("**/dataset_info.json"))


def _command(name: str, folder: Path) -> str:
    return f"pip install tensorflow && python -m resnet_jax.data.prepare {name} --data_dir {folder}"


def _prepare(name: str, folder: Path) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"data set {name!r} is not prepared in {folder}; set --config.data_dir or TFDS_DATA_DIR, or run: "
            f"{_command(name, folder)}"
        )
    print(f"preparing {name} in {folder}", file=sys.stderr, flush=True)
    # A child process, because TensorFlow would otherwise stay in this one and claim its accelerator's memory.
    child = subprocess.run([sys.executable, "-m", "resnet_jax.data.prepare", name, "--data_dir", str(folder)])
    if child.returncode:
        raise UserError(
            f"preparing {name!r} in {folder} failed (see above); mend that and run: {_command(name, folder)}"
        )
