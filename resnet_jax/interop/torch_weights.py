"""PyTorch's published ResNet weights as this project's variables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.errors import UserError, one_line
from resnet_jax.models import create_model
from resnet_jax.models.stacking import stack_blocks

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_MODULES = {"stem_conv": "conv1", "stem_bn": "bn1", "projection_conv": "downsample.0", "projection_bn": "downsample.1"}


def load_torch(
    name: str, source: str | Path | Mapping[str, Any], num_classes: int | None = None, **overrides: Any
) -> dict[str, Any]:
    """Variables {"params", "batch_stats"} for ``create_model(name, num_classes, **overrides)`` from PyTorch weights.

    Args:
        name: a model of ``list_models()``.
        source: a .pth, .pt, .th or .tar file (needs PyTorch), a .safetensors file, or a state dict of arrays or
            tensors. It may be nested under "state_dict", and its keys may begin with "module.". The keys are
            torchvision's: conv1, bn1, layer{1..}.{0..}.conv{1..}, .bn{1..}, .downsample.{0,1}, and "fc" or "linear".
        num_classes: default as many as the weights have.
        **overrides: as for ``create_model``.

    Raises UserError if the file cannot be read, or if any key is missing, left over or of another shape; all of them
    are listed.
    """
    state_dict = _read(Path(source)) if isinstance(source, (str, Path)) else source
    nested = state_dict.get("state_dict")
    if isinstance(nested, Mapping):
        state_dict = nested
    origin = source if isinstance(source, (str, Path)) else "the state dict"
    weights = {}
    for key, value in state_dict.items():
        name_of_weight = str(key).removeprefix("module.")
        if not name_of_weight.endswith("num_batches_tracked"):
            weights[name_of_weight] = _to_array(value, f"{key} in {origin}")
    head = "linear" if "linear.weight" in weights else "fc"
    if num_classes is None and f"{head}.weight" in weights:
        num_classes = max(1, len(np.atleast_1d(weights[f"{head}.weight"])))

    model = create_model(name, num_classes, **overrides)
    unrolled = model.clone(scan_blocks=False)
    template = jax.eval_shape(lambda: unrolled.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    variables, problems = {}, []
    for path, leaf in flax.traverse_util.flatten_dict(template).items():
        key = _torch_key(path, head)
        if key not in weights:
            problems.append(f"{key} is missing")
            continue
        array = _to_flax_layout(weights.pop(key), path)
        if array.shape != leaf.shape:
            problems.append(f"{key} gives shape {array.shape} where {name} has {leaf.shape}")
        variables[path] = jnp.asarray(array, jnp.float32)
    problems += [f"{key} has no place in {name}" for key in weights]
    if problems:
        raise UserError(f"{origin} does not fit {name}: {'; '.join(problems)}; use the model that it was saved from")
    loaded = flax.traverse_util.unflatten_dict(variables)
    return stack_blocks(loaded) if model.scan_blocks else loaded


def _torch_key(path: tuple[str, ...], head: str) -> str:
    """("params", "stage2_block1", "conv1", "kernel") -> "layer2.0.conv1.weight"."""
    _, *modules, leaf = path
    names = []
    for module in modules:
        if module.startswith("stage"):
            stage, block = module.removeprefix("stage").split("_block")
            names.append(f"layer{stage}.{int(block) - 1}")
        else:
            names.append(head if module == "head" else _MODULES.get(module, module))
    return ".".join([*names, _LEAVES[leaf]])


def _to_flax_layout(array: np.ndarray, path: tuple[str, ...]) -> np.ndarray:
    """Convolutions from (O, I, h, w) to (h, w, I, O), the classifier from (O, I) to (I, O)."""
    if path[-1] != "kernel":
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.transpose()


def _to_array(value: Any, where: str) -> np.ndarray:
    """A float32 array of an array or a tensor of any float type, also one that requires a gradient."""
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu().float().numpy()
        return np.asarray(value).astype(np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} is not a tensor ({one_line(error)}); give a state dict of weights") from None


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"there is no file {path} of PyTorch weights; correct the path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
        import torch

        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError as error:
        raise UserError(f"reading {path} needs {error.name}: pip install {error.name}") from None
    except Exception as error:  # Unpickling a damaged file can raise anything.
        raise UserError(f"{path} cannot be read as PyTorch weights ({one_line(error)}); fetch it again") from None
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not a state dict; save model.state_dict() instead")
    return loaded
