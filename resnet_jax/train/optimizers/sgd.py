"""SGD with momentum and L2 weight decay, as the paper's authors ran it (section 3.4)."""

from typing import Any, Literal

import jax
import optax

from resnet_jax.parts import NonNegativeFloat
from resnet_jax.train.optimizers.base import Optimizer


class SGD(Optimizer):
    """v := momentum * v + learning_rate * (gradient + weight_decay * w);  w := w - v.

    The rate is inside the velocity (the authors' released note), unlike in PyTorch; the two differ only just after
    the rate changes.

    decay: which parameters ``weight_decay`` applies to: "all" (the paper names no exception), or "kernels" (no batch
    normalisation, no biases).
    """

    name: Literal["sgd"] = "sgd"
    momentum: NonNegativeFloat = 0.9
    weight_decay: NonNegativeFloat = 1e-4
    decay: Literal["all", "kernels"] = "all"

    def transformation(self, learning_rate: jax.Array) -> optax.GradientTransformation:
        def decays(params: Any) -> Any:  # A mask in both cases, so that the state has the same form.
            return jax.tree_util.tree_map_with_path(
                lambda path, _: self.decay == "all" or path[-1].key == "kernel", params
            )

        return optax.chain(
            optax.add_decayed_weights(self.weight_decay, decays),
            optax.scale(-learning_rate),
            optax.trace(self.momentum),
        )
