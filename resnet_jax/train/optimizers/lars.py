"""LARS, for large batches."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from resnet_jax.parts import NonNegativeFloat
from resnet_jax.train.optimizers.base import DecayRule, Optimizer, by_layer


class LARS(Optimizer):
    """SGD with momentum, each layer's rate in proportion to the norm of its weights (You et al., arXiv 1708.03888).

    v := momentum * v + learning_rate * ratio * (gradient + weight_decay * w);  w := w - v, where
    ratio = trust * |w| / (|gradient| + weight_decay * |w| + epsilon) (algorithm 1; MLPerf's reference). Parameters that
    do not decay have a ratio of 1.
    """

    name: Literal["lars"] = "lars"
    decay: DecayRule = "kernels"
    momentum: NonNegativeFloat = 0.9
    trust: NonNegativeFloat = 0.001
    epsilon: NonNegativeFloat = 0.0

    def transformation(self, learning_rate: jax.Array) -> optax.GradientTransformation:
        return optax.chain(optax.stateless(self._scaled), optax.scale(-learning_rate), optax.trace(self.momentum))

    def _scaled(self, gradients: Any, params: Any) -> Any:
        def scale(gradient: jax.Array, weights: jax.Array) -> jax.Array:
            own, other = jnp.linalg.norm(weights.ravel()), jnp.linalg.norm(gradient.ravel())
            total = other + self.weight_decay * own + self.epsilon
            ratio = jnp.where((own > 0) & (other > 0), self.trust * own / jnp.where(total > 0, total, 1), 1.0)
            return ratio * (gradient + self.weight_decay * weights)

        scaled = by_layer(scale, gradients, params)
        return jax.tree.map(lambda decays, own, plain: own if decays else plain, self.decays(params), scaled, gradients)
