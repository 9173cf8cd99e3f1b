"""Everything a training run is, at one step."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnet_jax import parallel
from resnet_jax.models import Model
from resnet_jax.train.schedules import plateau_reducer, sgd


@flax.struct.dataclass
class TrainState:
    """The state between two steps. Scalars but for the three trees; a checkpoint holds just this.

    step: updates done so far.
    params, batch_stats: the model's variables. opt_state: the momentum.
    ema: exponential moving average of the variables, {"params", "batch_stats"}; {} without config.ema_decay.
    plateau: of ``schedules.plateau_reducer``; its scale multiplies the learning rate and is 1 for other schedules.
    train_error: exponential mean of the batches' top-1 error, in [0, 1], that the warm-up rule reads.
    warming_up: whether the rule of section 4.2 still holds the learning rate down.
    sums: loss and errors summed over the steps of the current logging interval, and their number.
    nonfinite_step: the first step whose loss, gradient or new variables were not finite, or -1.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    plateau: Any
    train_error: jax.Array
    warming_up: jax.Array
    sums: dict[str, jax.Array]
    nonfinite_step: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """What ``model.apply`` takes to evaluate: the moving average where there is one."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def init_state(config: ConfigDict, model: Model, image_shape: tuple[int, ...], mesh: Mesh) -> TrainState:
    """The state at step 0, a function of config.seed alone, replicated over the mesh."""

    def init() -> TrainState:
        images = jnp.zeros((1, *image_shape), jnp.float32)
        variables = model.init(jax.random.key(config.seed), images, train=False)
        batch_stats = variables.get("batch_stats", {})  # VGG has none.
        return TrainState(
            step=jnp.int32(0),
            params=variables["params"],
            batch_stats=batch_stats,
            opt_state=sgd(jnp.float32(0), config).init(variables["params"]),
            ema={"params": variables["params"], "batch_stats": batch_stats} if config.ema_decay else {},
            plateau=optax.contrib.reduce_on_plateau().init(jnp.float32(0)),  # The same for any setting of it.
            train_error=jnp.float32(1),
            warming_up=jnp.bool_(config.schedule.warmup_error > 0),
            sums={"loss": jnp.float32(0), "error": jnp.float32(0), "count": jnp.float32(0)},
            nonfinite_step=jnp.int32(-1),
        )

    return jax.jit(init, out_shardings=parallel.replicated(mesh))()


def step_plateau(config: ConfigDict, state: TrainState, error: float, mesh: Mesh) -> TrainState:
    """The state after an evaluation under the "plateau" schedule. ``error`` is top-1, in percent."""

    def update(plateau: Any, value: jax.Array) -> Any:
        return plateau_reducer(config).update({}, plateau, value=value)[1]

    sharding = parallel.replicated(mesh)
    return dataclasses.replace(
        state, plateau=jax.jit(update, out_shardings=sharding)(state.plateau, jnp.float32(error))
    )
