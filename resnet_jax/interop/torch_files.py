"""Files of PyTorch weights, read and written."""

import argparse
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.errors import UserError, one_line
from resnet_jax.files import expanded, replace_atomically

_WRITABLE = (".pth", ".pt", ".th", ".safetensors")


def read_torch_file(path: Path) -> Mapping[str, Any]:
    """What a .safetensors file holds, or any other file that PyTorch wrote, of which no code is run.

    Raises UserError if there is no such file, if it cannot be read, or if it holds no mapping.
    """
    path = expanded(path)
    if path.is_dir():
        raise UserError(
            f"{path} is a folder, not a file of PyTorch weights; name a file in it, or where it is that of a run or of "
            f"an exported network use --workdir or load_run"
        )
    if not path.is_file():
        raise UserError(f"there is no file {path} of PyTorch weights; correct the path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
        import torch

        # Training programs keep their flags beside the weights; a namespace is data, not code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError as error:
        raise UserError(f"reading {path} needs {error.name}: pip install {error.name}") from None
    except Exception as error:  # Unpickling a damaged file can raise anything.
        fix = "save model.state_dict() if it holds other objects than tensors, or else fetch it again"
        raise UserError(f"{path} cannot be read as PyTorch weights ({one_line(error)}); {fix}") from None
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not a state dict; save model.state_dict() instead")
    return loaded


def write_torch_file(path: Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes contiguous arrays as a .pth, .pt or .th file (needs PyTorch) or a .safetensors file: whole, or not at all.

    Raises UserError for another suffix, or if the file cannot be written.
    """
    if path.suffix not in _WRITABLE:
        raise UserError(
            f"{path} has no known suffix of PyTorch weights; use {', '.join(_WRITABLE[:-1])} or .safetensors"
        )
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} to write {path.name} in; make it, or correct the path")
    try:
        content = _encode(state_dict, path.suffix)
        with replace_atomically(path) as file:
            file.write(content)
    except ModuleNotFoundError as error:
        raise UserError(f"writing {path} needs {error.name}: pip install {error.name}, or write .safetensors") from None
    except OSError as error:
        raise UserError(f"cannot write {path} ({one_line(error)}); free it, or write elsewhere") from None


def _encode(state_dict: Mapping[str, np.ndarray], suffix: str) -> bytes:
    if suffix == ".safetensors":
        from safetensors.numpy import save

        return save(dict(state_dict), metadata={"format": "pt"})  # Some readers refuse a file that does not say so.
    import torch

    # In memory, because PyTorch reports a full disk as an error of its own kind.
    buffer = io.BytesIO()
    torch.save({key: torch.from_numpy(array) for key, array in state_dict.items()}, buffer)
    return buffer.getvalue()
