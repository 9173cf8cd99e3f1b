"""LAMB, for large batches."""

from typing import Annotated, Any, Literal

import jax
import optax
from pydantic import Field

from resnet_jax.parts import Fraction, NonNegativeFloat
from resnet_jax.train.optimizers.base import DecayRule, Optimizer, by_layer


class LAMB(Optimizer):
    """Adam with each layer's step scaled to the norm of its weights (You et al., arXiv 1904.00962, algorithm 2).

    As in timm and NVIDIA's Apex, whose ``clip_norm`` is 1, parameters that do not decay take Adam's plain step.
    """

    name: Literal["lamb"] = "lamb"
    learning_rate: NonNegativeFloat = 5e-3
    weight_decay: NonNegativeFloat = 0.02
    decay: DecayRule = "kernels"
    b1: Fraction = 0.9
    b2: Fraction = 0.999
    epsilon: Annotated[float, Field(gt=0)] = 1e-6

    def transformation(self, learning_rate: jax.Array) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_adam(self.b1, self.b2, self.epsilon),
            optax.add_decayed_weights(self.weight_decay, self.decays),
            optax.masked(optax.stateless(_scaled), self.decays),
            optax.scale(-learning_rate),
        )


def _scaled(updates: Any, params: Any) -> Any:
    ratio = optax.scale_by_trust_ratio()
    return by_layer(lambda update, weights: ratio.update(update, optax.EmptyState(), weights)[0], updates, params)
