"""Deep residual learning for image recognition, in JAX. arXiv 1512.03385."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_jax.data.resident import ResidentDataset
    from resnet_jax.experiment.networks import load_run
    from resnet_jax.interop.pretrained import load_pretrained
    from resnet_jax.interop.torch_weights import load_torch, save_torch
    from resnet_jax.models import create_model, list_models

__all__ = [
    "ResidentDataset",
    "create_model",
    "list_models",
    "load_pretrained",
    "load_run",
    "load_torch",
    "save_torch",
]

_MODULES = {
    "ResidentDataset": "data.resident",
    "create_model": "models",
    "list_models": "models",
    "load_pretrained": "interop.pretrained",
    "load_run": "experiment.networks",
    "load_torch": "interop.torch_weights",
    "save_torch": "interop.torch_weights",
}


def __getattr__(name: str) -> Any:
    """Imports on first use: models and weights need only JAX, Flax and NumPy, and the rest the "train" extra."""
    if name not in _MODULES:
        raise AttributeError(f"module 'resnet_jax' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"resnet_jax.{_MODULES[name]}")
    except ModuleNotFoundError as error:
        if str(error.name).startswith("resnet_jax"):
            raise
        raise ModuleNotFoundError(
            f'resnet_jax.{name} needs {error.name}; pip install ".[train]" in the checkout', name=error.name
        ) from None
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
