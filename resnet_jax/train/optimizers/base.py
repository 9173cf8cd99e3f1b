"""What every optimizer has: a peak learning rate, weight decay by rule, clipping, and a rate that the step sets."""

import re
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import optax

from resnet_jax.parts import Count, NonNegativeFloat, Part

DecayRule: TypeAlias = Literal["all", "kernels", "not_norm"]


class Optimizer(Part):
    """Base class of the optimizers; one of them adds ``name``, its settings, and ``transformation``.

    learning_rate: the peak, before any schedule.
    learning_rate_batch: the batch size that ``learning_rate`` is stated for; None: it is not scaled.
    decay: which parameters ``weight_decay`` applies to: "all"; "kernels" (no scales and no biases); or "not_norm" (no
        scales and biases of normalisation, but the classifier's bias).
    clip_norm: gradients are scaled down to this norm, of all of them together (Pascanu et al. 2013); 0: off.
    adaptive_clip: those of each unit to this part of the norm of its weights, but for the classifier's (Brock et al.,
        arXiv 2102.06171, section 4.1); before ``clip_norm``; 0: off.
    sam_radius: the gradient is taken at this distance uphill, at the cost of a second one (sharpness-aware
        minimisation, Foret et al., arXiv 2010.01412, algorithm 1); 0: off. ``train/step.py`` reads it.
    """

    name: str
    learning_rate: NonNegativeFloat = 0.1
    learning_rate_batch: Count | None = None
    weight_decay: NonNegativeFloat = 1e-4
    decay: DecayRule = "all"
    clip_norm: NonNegativeFloat = 0.0
    adaptive_clip: NonNegativeFloat = 0.0
    sam_radius: NonNegativeFloat = 0.0

    @abstractmethod
    def transformation(self, learning_rate: jax.Array) -> optax.GradientTransformation:
        """From clipped gradients to what is added to the parameters. ``learning_rate`` is a traced scalar."""

    def rate(self, batch_size: int) -> float:
        """The peak rate for a batch: scaled linearly from ``learning_rate_batch`` (Goyal et al. 2017, section 2.1)."""
        if self.learning_rate_batch is None:
            return self.learning_rate
        return self.learning_rate * batch_size / self.learning_rate_batch

    def decays(self, params: Any) -> Any:
        """A tree like ``params`` of bools: what ``decay`` says."""
        leaves = jax.tree_util.tree_leaves_with_path(params)
        norms = {path[:-1] for path, _ in leaves if path and path[-1].key == "scale"}
        rules = {
            "all": lambda path: True,
            "kernels": lambda path: path[-1].key == "kernel",
            "not_norm": lambda path: path[:-1] not in norms,
        }
        return jax.tree_util.tree_map_with_path(lambda path, _: rules[self.decay](path), params)

    def make(self) -> optax.GradientTransformationExtraArgs:
        """The transformation with ``update(gradients, state, params, learning_rate=...)``.

        The rate is an argument and not a part of the state, as ``optax.inject_hyperparams`` has it: carried from step
        to step by ``lax.scan``, it would change how XLA rounds. The state's form does not depend on the settings, so
        that they may change between two starts of a run; clipping has no state, and is done outside of the chain.
        """

        def init(params: Any) -> Any:
            return self.transformation(jnp.float32(0)).init(params)

        def update(updates: Any, state: Any, params: Any = None, *, learning_rate: jax.Array) -> tuple[Any, Any]:
            return self.transformation(learning_rate).update(self._clipped(updates, params), state, params)

        return optax.GradientTransformationExtraArgs(init, update)

    def _clipped(self, gradients: Any, params: Any) -> Any:
        if self.adaptive_clip:
            clip = optax.adaptive_grad_clip(self.adaptive_clip)
            clipped = by_layer(lambda g, w: clip.update(g, optax.EmptyState(), w)[0], gradients, params)
            gradients = jax.tree_util.tree_map_with_path(
                lambda path, whole, part: whole if path[0].key == "head" else part, gradients, clipped
            )
        if self.clip_norm:
            gradients, _ = optax.clip_by_global_norm(self.clip_norm).update(gradients, optax.EmptyState(), params)
        return gradients


def by_layer(rule: Callable[..., jax.Array], *trees: Any) -> Any:
    """The tree of ``rule(*leaves)``, for rules that take norms of a layer's parameters.

    Blocks that ``stack_blocks`` laid on a first axis are layers each: the rule is called for one at a time.
    """

    def apply(path: Any, *leaves: jax.Array) -> jax.Array:
        stacked = any(re.fullmatch(r"stage\d+_blocks", key.key) for key in path)
        return jax.vmap(rule)(*leaves) if stacked else rule(*leaves)

    return jax.tree_util.tree_map_with_path(apply, *trees)
