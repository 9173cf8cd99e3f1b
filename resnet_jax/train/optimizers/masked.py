"""An optimizer that changes a part of the parameters only."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def only(optimizer: optax.GradientTransformationExtraArgs, mask: Any) -> optax.GradientTransformationExtraArgs:
    """``optimizer`` for the parameters whose leaf in ``mask``, a tree of bools, is true; None: for all of them.

    The others have None for an update and keep every bit (``apply_updates``): no gradient, weight decay or momentum of
    theirs reaches them, or a norm over all parameters. The state has the form that it has without a mask.
    """
    if mask is None:
        return optimizer

    def masked(tree: Any) -> Any:
        return jax.tree.map(lambda leaf, kept: leaf if kept else jnp.zeros_like(leaf), tree, mask)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(masked(updates), state, masked(params), **extra)
        return jax.tree.map(lambda leaf, kept: leaf if kept else None, updates, mask), state

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def apply_updates(params: Any, updates: Any) -> Any:
    """The sum of both; where an update is None, the parameter itself.

    Adding 0 would not do: XLA makes 0 of numbers too small to be normal, which trained networks have.
    """
    return jax.tree.map(lambda p, u: p if u is None else optax.apply_updates(p, u), params, updates)
