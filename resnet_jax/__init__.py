"""Deep residual learning for image recognition, in JAX. arXiv 1512.03385."""

from resnet_jax.interop.torch_weights import load_torch
from resnet_jax.models import create_model, list_models

__all__ = ["create_model", "list_models", "load_torch"]
