"""SGD with momentum and L2 weight decay, as the paper's authors ran it (section 3.4)."""

from typing import Literal

import jax
import optax

from resnet_jax.parts import NonNegativeFloat
from resnet_jax.train.optimizers.base import Optimizer


class SGD(Optimizer):
    """v := momentum * v + learning_rate * (gradient + weight_decay * w);  w := w - v.

    The rate is inside the velocity (the authors' released note), unlike in PyTorch; the two differ only just after
    the rate changes. By default ``weight_decay`` is of all parameters: the paper names no exception.

    nesterov: w moves by momentum * v + learning_rate * (...) instead (Sutskever et al. 2013, as PyTorch has it).
    """

    name: Literal["sgd"] = "sgd"
    momentum: NonNegativeFloat = 0.9
    nesterov: bool = False

    def transformation(self, learning_rate: jax.Array) -> optax.GradientTransformation:
        return optax.chain(
            # A mask for each rule, so that the state has the same form.
            optax.add_decayed_weights(self.weight_decay, self.decays),
            optax.scale(-learning_rate),
            optax.trace(self.momentum, nesterov=self.nesterov),
        )
