"""Everything a training run is, at one step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnet_jax import parallel
from resnet_jax.models.resnet import ResNet
from resnet_jax.train.schedules import sgd


@flax.struct.dataclass
class TrainState:
    """The state between two steps. Scalars but for the three trees; a checkpoint holds just this.

    step: updates done so far.
    params, batch_stats: the model's variables. opt_state: the momentum.
    train_error: exponential mean of the batches' top-1 error, in [0, 1], that the warm-up rule reads.
    warming_up: whether the rule of section 4.2 still holds the learning rate down.
    sums: loss and errors summed over the steps of the current logging interval, and their number.
    nonfinite_step: the first step whose loss, gradient or new variables were not finite, or -1.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    train_error: jax.Array
    warming_up: jax.Array
    sums: dict[str, jax.Array]
    nonfinite_step: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """What ``model.apply`` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_state(config: ConfigDict, model: ResNet, image_shape: tuple[int, ...], mesh: Mesh) -> TrainState:
    """The state at step 0, a function of config.seed alone, replicated over the mesh."""

    def init() -> TrainState:
        images = jnp.zeros((1, *image_shape), jnp.float32)
        variables = model.init(jax.random.key(config.seed), images, train=False)
        return TrainState(
            step=jnp.int32(0),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=sgd(jnp.float32(0), config).init(variables["params"]),
            train_error=jnp.float32(1),
            warming_up=jnp.bool_(config.schedule.warmup_error > 0),
            sums={"loss": jnp.float32(0), "error": jnp.float32(0), "count": jnp.float32(0)},
            nonfinite_step=jnp.int32(-1),
        )

    return jax.jit(init, out_shardings=parallel.replicated(mesh))()
