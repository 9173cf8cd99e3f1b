"""What every optimizer has: a peak learning rate, and a transformation whose rate the training step sets."""

from abc import abstractmethod
from typing import Any

import jax
import jax.numpy as jnp
import optax

from resnet_jax.parts import Count, NonNegativeFloat, Part


class Optimizer(Part):
    """Base class of the optimizers; one of them adds ``name``, its settings, and ``transformation``.

    learning_rate: the peak, before any schedule.
    learning_rate_batch: the batch size that ``learning_rate`` is stated for; None: it is not scaled.
    """

    name: str
    learning_rate: NonNegativeFloat = 0.1
    learning_rate_batch: Count | None = None

    @abstractmethod
    def transformation(self, learning_rate: jax.Array) -> optax.GradientTransformation:
        """From gradients to what is added to the parameters. ``learning_rate`` is a traced scalar."""

    def rate(self, batch_size: int) -> float:
        """The peak rate for a batch: scaled linearly from ``learning_rate_batch`` (Goyal et al. 2017, section 2.1)."""
        if self.learning_rate_batch is None:
            return self.learning_rate
        return self.learning_rate * batch_size / self.learning_rate_batch

    def make(self) -> optax.GradientTransformationExtraArgs:
        """The transformation with ``update(gradients, state, params, learning_rate=...)``.

        The rate is an argument and not a part of the state, as ``optax.inject_hyperparams`` has it: carried from step
        to step by ``lax.scan``, it would change how XLA rounds. The state's form does not depend on the settings, so
        that they may change between two starts of a run.
        """

        def init(params: Any) -> Any:
            return self.transformation(jnp.float32(0)).init(params)

        def update(updates: Any, state: Any, params: Any = None, *, learning_rate: jax.Array) -> tuple[Any, Any]:
            return self.transformation(learning_rate).update(updates, state, params)

        return optax.GradientTransformationExtraArgs(init, update)
