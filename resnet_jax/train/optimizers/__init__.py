"""The optimizers. A new one is a file of its own here and a member of ``AnyOptimizer``."""

from typing import Annotated, TypeAlias

from pydantic import Field

from resnet_jax.train.optimizers.adamw import AdamW
from resnet_jax.train.optimizers.base import DecayRule, Optimizer
from resnet_jax.train.optimizers.lamb import LAMB
from resnet_jax.train.optimizers.lars import LARS
from resnet_jax.train.optimizers.sgd import SGD

AnyOptimizer: TypeAlias = Annotated[SGD | AdamW | LAMB | LARS, Field(discriminator="name")]

__all__ = ["LAMB", "LARS", "SGD", "AdamW", "AnyOptimizer", "DecayRule", "Optimizer"]
