"""The networks of the paper, and those that it compares them with: ``create_model``, and the parts to make others."""

from resnet_jax.models.model import Model
from resnet_jax.models.zoo import Variant, create_model, list_models, variant

__all__ = ["Model", "Variant", "create_model", "list_models", "variant"]
