"""AdamW."""

from typing import Annotated, Literal

import jax
import optax
from pydantic import Field

from resnet_jax.parts import Fraction, NonNegativeFloat
from resnet_jax.train.optimizers.base import DecayRule, Optimizer


class AdamW(Optimizer):
    """Adam with weight decay apart from the gradient (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2).

    Each step also subtracts learning_rate * weight_decay * w, as in PyTorch.
    """

    name: Literal["adamw"] = "adamw"
    learning_rate: NonNegativeFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.01
    decay: DecayRule = "kernels"
    b1: Fraction = 0.9
    b2: Fraction = 0.999
    epsilon: Annotated[float, Field(gt=0)] = 1e-8

    def transformation(self, learning_rate: jax.Array) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_adam(self.b1, self.b2, self.epsilon),
            optax.add_decayed_weights(self.weight_decay, self.decays),
            optax.scale(-learning_rate),
        )
