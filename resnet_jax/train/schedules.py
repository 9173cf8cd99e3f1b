"""Learning rates as functions of the step, and the optimizer they drive."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from resnet_jax.errors import UserError

Schedule = Callable[[jax.Array], jax.Array]


def make_schedule(config: ConfigDict) -> Schedule:
    """The learning rate by step (from 0), as config.schedule describes it.

    "step": config.optimizer.learning_rate, times ``factor`` at each of ``boundaries`` (section 4.2: 32k and 48k).
    "cosine": from the learning rate to 0 at config.steps along half a cosine.
    "constant": the learning rate throughout.
    "plateau": the same, before ``plateau_reducer`` scales it.
    ``warmup_steps`` makes any of them climb linearly from 0 first.
    """
    peak, schedule = config.optimizer.learning_rate, config.schedule
    warmup = schedule.warmup_steps
    if not 0 <= warmup < config.steps:
        raise UserError(f"config.schedule.warmup_steps is {warmup}; it must be from 0 to config.steps - 1")
    if schedule.name == "step":
        boundaries = dict.fromkeys(schedule.boundaries, schedule.factor)
        if list(boundaries) != sorted(schedule.boundaries):
            raise UserError(f"config.schedule.boundaries is {schedule.boundaries!r}; its steps must increase")
        main = optax.piecewise_constant_schedule(peak, boundaries)
    elif schedule.name == "cosine":
        decay = optax.cosine_decay_schedule(peak, config.steps - warmup)
        main = lambda step: decay(step - warmup)  # noqa: E731
    elif schedule.name in ("constant", "plateau"):
        main = optax.constant_schedule(peak)
    else:
        raise UserError(
            f"config.schedule.name is {schedule.name!r}; it must be 'step', 'plateau', 'cosine' or 'constant'"
        )
    if warmup == 0:
        return main
    # The first step already moves: (step + 1) / warmup of the peak.
    return lambda step: jnp.where(step < warmup, peak * (step + 1) / warmup, main(step))


def plateau_reducer(config: ConfigDict) -> optax.GradientTransformationExtraArgs:
    """The "plateau" schedule: its state's ``scale`` multiplies the learning rate (section 3.4).

    Update it once an evaluation with ``value=`` the error. After config.schedule.patience evaluations without a new
    least error (by a relative 1e-4) the scale is multiplied by config.schedule.factor. It stands apart from the
    optimizer's chain, where it would count steps.
    """
    return optax.contrib.reduce_on_plateau(factor=config.schedule.factor, patience=config.schedule.patience)


def sgd(learning_rate: jax.Array, config: ConfigDict) -> optax.GradientTransformation:
    """SGD with momentum and L2 weight decay, as the paper's authors ran it.

    v := momentum * v + learning_rate * (gradient + weight_decay * w);  w := w - v. The rate is inside the velocity
    (the authors' released note), unlike in PyTorch; the two differ only just after the rate changes.
    config.optimizer.decay: "all" parameters (the paper names no exception) or "kernels" (no BN scale, no bias).

    ``learning_rate`` may be a traced value: make the transformation inside the step that applies it.
    """
    optimizer = config.optimizer
    if optimizer.decay not in ("all", "kernels"):
        raise UserError(f"config.optimizer.decay is {optimizer.decay!r}; it must be 'all' or 'kernels'")

    def decays(params: Any) -> Any:  # A mask in both cases, so that the state has the same form.
        return jax.tree_util.tree_map_with_path(
            lambda path, _: optimizer.decay == "all" or path[-1].key == "kernel", params
        )

    return optax.chain(
        optax.add_decayed_weights(optimizer.weight_decay, decays),
        optax.scale(-learning_rate),
        optax.trace(optimizer.momentum),
    )
