"""The optimizers. A new one is a file of its own here and a member of ``AnyOptimizer``.

With two members or more the table is ``Annotated[SGD | Other, Field(discriminator="name")]``.
"""

from typing import TypeAlias

from resnet_jax.train.optimizers.base import Optimizer
from resnet_jax.train.optimizers.masked import apply_updates, only
from resnet_jax.train.optimizers.sgd import SGD

AnyOptimizer: TypeAlias = SGD

__all__ = ["SGD", "AnyOptimizer", "Optimizer", "apply_updates", "only"]
