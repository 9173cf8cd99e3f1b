"""Optimizers that change a part of the parameters only, or each at a rate of its own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def scaled(
    optimizer: optax.GradientTransformationExtraArgs, scales_of: Callable[[Any], Any]
) -> optax.GradientTransformationExtraArgs:
    """The optimizer with its updates multiplied by ``scales_of(params)``, a tree of floats and arrays.

    Every optimizer's update is proportional to its learning rate, so this scales the rate. A parameter whose scale is
    the float 0 is frozen: it has None for an update and keeps every bit (``apply_updates``); no gradient, weight decay
    or momentum of it reaches it, or a norm over all parameters. The state has the form that it has without scales.
    """

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        scales = scales_of(params)
        updates, seen = (jax.tree.map(_zero_if_frozen, scales, tree) for tree in (updates, params))
        updates, state = optimizer.update(updates, state, seen, **extra)
        return jax.tree.map(_scale, scales, updates), state

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def only(optimizer: optax.GradientTransformationExtraArgs, mask: Any) -> optax.GradientTransformationExtraArgs:
    """``optimizer`` for the parameters whose leaf in ``mask``, a tree of bools, is true; None: for all of them."""
    return optimizer if mask is None else scaled(optimizer, lambda _: jax.tree.map(float, mask))


def apply_updates(params: Any, updates: Any) -> Any:
    """The sum of both; where an update is None, the parameter itself.

    Adding 0 would not do: XLA makes 0 of numbers too small to be normal, which trained networks have.
    """
    return jax.tree.map(lambda p, u: p if u is None else optax.apply_updates(p, u), params, updates)


def without_frozen(optimizer: optax.GradientTransformationExtraArgs, gradients: Any, state: Any, params: Any) -> Any:
    """``gradients`` with zeros for the parameters that ``optimizer`` leaves alone."""
    updates, _ = jax.eval_shape(optimizer.update, gradients, state, params, learning_rate=jnp.float32(0))
    return jax.tree.map(lambda g, u: jnp.zeros_like(g) if u is None else g, gradients, updates)


def _frozen(scale: float | np.ndarray) -> bool:
    return isinstance(scale, float) and scale == 0


def _zero_if_frozen(scale: float | np.ndarray, leaf: jax.Array) -> jax.Array:
    return jnp.zeros_like(leaf) if _frozen(scale) else leaf


def _scale(scale: float | np.ndarray, update: jax.Array) -> jax.Array | None:
    if _frozen(scale):
        return None
    return update if isinstance(scale, float) and scale == 1 else update * scale
