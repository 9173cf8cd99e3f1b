"""Exact error rates of a classifier: every example counts once, at any batch size and device count."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from resnet_jax import parallel
from resnet_jax.data.augment import normalize
from resnet_jax.data.resident import Split, gather
from resnet_jax.models.resnet import ResNet

EvalStep = Callable[[Any, Split, jax.Array, jax.Array], dict[str, jax.Array]]


def make_eval_step(model: ResNet, mean: np.ndarray, std: np.ndarray, mesh: Mesh) -> EvalStep:
    """Compiles ``(variables, split, indices, mask) -> sums`` over the examples of (B,) ``indices`` where ``mask`` is 1.

    The sums are loss, top1_errors, top5_errors and num_examples, scalars. An example is a top-5 error when five or
    more classes score higher than its own.
    """

    def eval_step(variables: Any, split: Split, indices: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        batch = gather(split, indices)
        images = normalize(batch["image"], mean, std)
        logits = jnp.asarray(model.apply(variables, images, train=False))
        labels = batch["label"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
        # Among equal scores the lower class index comes first, as in a sorted list of the classes.
        before = (logits > own) | ((logits == own) & (jnp.arange(logits.shape[-1]) < labels[:, None]))
        # A score that is not a number beats nothing: such an example is wrong, not right.
        rank = jnp.where(jnp.isnan(own[:, 0]), logits.shape[-1], before.sum(axis=-1))
        return {
            "loss": jnp.sum(losses * mask),
            "top1_errors": jnp.sum((rank >= 1) * mask),
            "top5_errors": jnp.sum((rank >= 5) * mask),
            "num_examples": jnp.sum(mask),
        }

    return jax.jit(eval_step, out_shardings=parallel.replicated(mesh))


def evaluate(eval_step: EvalStep, variables: Any, split: Split, batch_size: int, mesh: Mesh) -> dict[str, float]:
    """Runs ``eval_step`` over a split on the mesh: num_examples, top1_error and top5_error in percent, mean loss."""
    sharding = parallel.sharded_batch(mesh)
    totals: Any = None
    batches = list(masked_batches(len(split), batch_size, mesh.size))
    for indices, mask in tqdm(batches, "evaluating", delay=1, leave=False, disable=not parallel.is_main_process()):
        sums = eval_step(variables, split, *parallel.to_global((indices, mask), sharding))
        totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
    totals = jax.device_get(totals)
    count = int(totals["num_examples"])
    return {
        "num_examples": count,
        "top1_error": round(100 * int(totals["top1_errors"]) / count, 4),
        "top5_error": round(100 * int(totals["top5_errors"]) / count, 4),
        "loss": float(totals["loss"]) / count,
    }


def masked_batches(num_examples: int, batch_size: int, num_devices: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices (B,) and mask (B,), int32, that cover 0..num_examples-1 once, the last batch padded with masked ones.

    B is ``batch_size``, or ``num_examples`` if that is less, rounded up to a multiple of ``num_devices``.
    """
    size = min(batch_size, num_examples)
    size = -(-size // num_devices) * num_devices
    for start in range(0, num_examples, size):
        positions = np.arange(start, start + size)
        mask = positions < num_examples
        yield np.where(mask, positions, 0).astype(np.int32), mask.astype(np.int32)
