"""An optimizer that changes a part of the parameters only."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def only(optimizer: optax.GradientTransformationExtraArgs, mask: Any) -> optax.GradientTransformationExtraArgs:
    """``optimizer`` for the parameters whose leaf in ``mask``, a tree of bools, is true; None: for all of them.

    The others stay as they are to the bit: no gradient, no weight decay and no momentum of theirs reaches them or a
    norm over all parameters. The state has the form that it has without a mask.
    """
    if mask is None:
        return optimizer

    def masked(tree: Any) -> Any:
        return jax.tree.map(lambda leaf, kept: leaf if kept else jnp.zeros_like(leaf), tree, mask)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(masked(updates), state, masked(params), **extra)
        return masked(updates), state

    return optax.GradientTransformationExtraArgs(optimizer.init, update)
