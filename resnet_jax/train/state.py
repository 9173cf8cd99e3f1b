"""Everything a training run is, at one step."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from resnet_jax import parallel
from resnet_jax.tasks.task import Task
from resnet_jax.train.schedules import Plateau


@flax.struct.dataclass
class TrainState:
    """The state between two steps. Scalars but for the trees of variables; a checkpoint holds exactly this.

    step: updates done so far.
    params, batch_stats: the task's variables. opt_state: the optimizer's.
    ema: exponential moving average of the variables, {"params", "batch_stats"}; {} where there is none.
    plateau: the state of ``Plateau.reducer``; its scale multiplies the learning rate and is 1 for other schedules.
    train_error: exponential mean of the batches' first metric, which the hold rule reads.
    warming_up: whether the hold rule of section 4.2 still keeps the learning rate down.
    sums: loss and metrics summed over the steps of the current logging interval, and their number.
    nonfinite_step: the first step whose loss, gradient or new variables were not finite, or -1. Where such steps are
        skipped: -1 less their number.
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
        """What evaluations use: the moving average where there is one."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def init_state(
    task: Task,
    optimizer: optax.GradientTransformationExtraArgs,
    seed: int,
    ema_decay: float,
    hold_error: float,
    image_shape: tuple[int, ...],
    mesh: Mesh,
) -> TrainState:
    """The state at step 0, a function of ``seed`` alone, replicated over the mesh.

    Of ``ema_decay`` and ``hold_error`` it matters only whether they are above 0. ``image_shape`` is (H, W, C).
    """

    def init() -> TrainState:
        variables = task.init(jax.random.key(seed), image_shape)
        return TrainState(
            step=jnp.int32(0),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=optimizer.init(variables["params"]),
            ema=variables if ema_decay else {},
            plateau=_unreduced(),
            train_error=jnp.float32(1),
            warming_up=jnp.bool_(hold_error > 0),
            sums={name: jnp.float32(0) for name in ("loss", *task.metrics, "count")},
            nonfinite_step=jnp.int32(-1),
        )

    # LLVM's higher levels take several times as long over random numbers, and give the same ones. Where only shapes are
    # asked for, nothing is compiled, and JAX refuses the option.
    traced = isinstance(jnp.zeros(()), jax.core.Tracer)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    options = {"xla_backend_optimization_level": 1} if on_cpu and not traced else None
    return jax.jit(init, out_shardings=parallel.replicated(mesh), compiler_options=options)()


def replace_variables(state: TrainState, replaced: Callable[[Any], Any], mesh: Mesh) -> TrainState:
    """The state at step 0 with other variables, of the same shapes, than the random ones that ``replaced`` is given."""
    variables = replaced({"params": state.params, "batch_stats": state.batch_stats})
    variables = parallel.to_global(jax.device_get(variables), parallel.replicated(mesh))
    # A copy, because the state is donated.
    ema = jax.tree.map(jnp.copy, variables) if state.ema else state.ema
    return dataclasses.replace(state, params=variables["params"], batch_stats=variables["batch_stats"], ema=ema)


def overlaid(variables: Any, given: Any) -> Any:
    """The tree with the leaves of ``given``, a part of one of the same form, in their places."""
    if not isinstance(given, Mapping):
        return given
    return {name: overlaid(value, given[name]) if name in given else value for name, value in variables.items()}


def _unreduced() -> Any:
    """The state of a reducer that has reduced nothing; the same for any setting of ``Plateau``."""
    return optax.contrib.reduce_on_plateau().init(jnp.float32(0))


def without_reduction(state: TrainState, mesh: Mesh) -> TrainState:
    """The state for another schedule than "plateau", whose reductions of the learning rate end with it."""
    return dataclasses.replace(state, plateau=parallel.to_global(_unreduced(), parallel.replicated(mesh)))


def step_plateau(plateau: Plateau, state: TrainState, error: float, mesh: Mesh) -> TrainState:
    """The state after an evaluation under the "plateau" schedule. ``error`` is the task's best figure."""

    def update(reducer_state: Any, value: jax.Array) -> Any:
        return plateau.reducer().update({}, reducer_state, value=value)[1]

    sharding = parallel.replicated(mesh)
    return dataclasses.replace(
        state, plateau=jax.jit(update, out_shardings=sharding)(state.plateau, jnp.float32(error))
    )
