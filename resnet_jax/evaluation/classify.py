"""Scores and exact error rates of a classifier: every example counts once, at any batch size and device count."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from resnet_jax import parallel
from resnet_jax.data.dataset import Dataset
from resnet_jax.data.feed import evaluation_inputs
from resnet_jax.data.normalization import Normalization
from resnet_jax.errors import UserError
from resnet_jax.evaluation.protocols import find_protocol
from resnet_jax.models import Model

TOP = 5  # With as many classes or fewer, every example is right among so many.


class Scores(NamedTuple):
    """What a network says of each example of a split, in the split's order.

    log_probs: (N, num_classes) float32. labels: (N,) int32, -1 for a photograph that cannot be decoded.
    shapes: the batch shapes that occurred; one program was compiled for each.
    """

    log_probs: np.ndarray
    labels: np.ndarray
    shapes: set[tuple[int, ...]]


Evaluator = Callable[[Any], Scores]


def make_evaluator(
    model: Model,
    normalization: Normalization,
    dataset: Dataset,
    split: str,
    mesh: Mesh,
    batch_size: int,
    protocol: str = "single",
) -> Evaluator:
    """``variables -> Scores`` of a split under a protocol of ``protocols.PROTOCOLS``; compiles on its first call.

    ``batch_size`` is the global number of images on the devices at a time, and does not change the scores. Raises
    UserError for a protocol or split that there is not, or a network or data set that the protocol is not for.
    """
    passes_of, score, check = find_protocol(protocol)
    check(model)
    scales = passes_of(dataset, split, batch_size)
    count = dataset.count(split)
    resident = parallel.to_global(dataset.resident(split), parallel.replicated(mesh))

    def eval_step(variables: Any, resident: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        batch = dataset.gather(resident, batch)
        log_probs = score(model, normalization, variables, batch["image"], batch.get("size"), dataset.crop_size)
        return {"log_probs": log_probs, "label": batch["label"], "index": batch["index"]}

    # Replicated, because every process of a job counts the errors for itself.
    compiled = jax.jit(eval_step, out_shardings=parallel.replicated(mesh))

    def evaluate(variables: Any) -> Scores:
        labels, shapes = np.full(count, -1, np.int32), set()
        previous: Any = None

        def keep(result: Any, log_probs: np.ndarray) -> int:
            """Puts the scores of a batch in their places; returns how many there are."""
            if result is None:
                return 0
            result = jax.device_get(result)
            found = result["label"] >= 0
            rows = result["index"][found]
            log_probs[rows], labels[rows] = result["log_probs"][found], result["label"][found]
            return len(rows)

        total = np.full((count, model.num_classes), -np.inf, np.float32)
        hidden = None if parallel.is_main_process() else True  # None: only where stderr is a terminal.
        with tqdm(total=count * len(scales), desc="evaluating", delay=1, leave=False, disable=hidden) as bar:
            for passes in scales:
                log_probs = np.full_like(total, -np.inf)
                for view, size in passes:
                    for batch in evaluation_inputs(dataset, split, view, size, mesh):
                        result = compiled(variables, resident, batch)
                        shapes.add(batch.get("image", batch["index"]).shape)
                        bar.update(keep(previous, log_probs))  # While the device computes this one.
                        previous = result
                    bar.update(keep(previous, log_probs))
                    previous = None
                total = log_add(total, log_probs)
        return Scores(total - np.float32(np.log(len(scales))), labels, shapes)

    return evaluate


def log_add(total: np.ndarray, log_probs: np.ndarray) -> np.ndarray:
    """The logarithm of the sum of probabilities. Scores that are not numbers stay so, without a warning."""
    with np.errstate(invalid="ignore"):
        return np.logaddexp(total, log_probs)


def error_rates(scores: Scores) -> dict[str, float]:
    """{"num_examples", "top1_error" and "top5_error" in percent, "loss"} of the examples that have a label.

    An example is a top-5 error when five or more classes score higher than its own; among equal scores the lower class
    index comes first, as in a sorted list of the classes. A score that is not a number beats nothing. "top5_error" is
    absent with five classes or fewer, where there can be none.

    Raises UserError if there are no examples.
    """
    found = scores.labels >= 0
    log_probs, labels = scores.log_probs[found], scores.labels[found, None]
    if not len(labels):
        raise UserError(
            "no example of the split can be read and has a label; correct config.data_dir, or score another --split"
        )
    own = np.take_along_axis(log_probs, labels, axis=1)
    before = (log_probs > own) | ((log_probs == own) & (np.arange(log_probs.shape[1]) < labels))
    rank = np.where(np.isnan(own[:, 0]), log_probs.shape[1], before.sum(axis=1))
    rates = {"num_examples": len(labels), "top1_error": round(100 * float((rank >= 1).mean()), 4)}
    if log_probs.shape[1] > TOP:
        rates["top5_error"] = round(100 * float((rank >= TOP).mean()), 4)
    return rates | {"loss": -float(own.mean(dtype=np.float64))}
