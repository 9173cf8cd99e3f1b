"""Scores and exact error rates of a classifier: every example counts once, at any batch size and device count."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from resnet_jax import parallel
from resnet_jax.data.dataset import Data
from resnet_jax.data.feed import evaluation_inputs
from resnet_jax.data.normalization import Normalization
from resnet_jax.data.resident import Dataset, Split, gather
from resnet_jax.errors import UserError
from resnet_jax.evaluation.protocols import scorer, views
from resnet_jax.models import Model
from resnet_jax.models.resnet import ResNet


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
    config: ConfigDict,
    model: Model,
    normalization: Normalization,
    data: Data,
    split: str,
    mesh: Mesh,
    protocol: str = "single",
) -> Evaluator:
    """``variables -> Scores`` of a split under a protocol of ``protocols.NAMES``; compiles on its first call.

    Raises UserError for a protocol or split that there is not, or a network that the protocol is not for.
    """
    if protocol == "multi_scale" and not isinstance(model, ResNet):
        raise UserError("protocol multi_scale is for networks that end in global average pooling; use ten_crop")
    scales = views(protocol, config, data, split)
    score = scorer(protocol, config)
    count = len(data.split(split))
    resident = parallel.to_global(data.split(split), parallel.replicated(mesh)) if isinstance(data, Dataset) else None

    def eval_step(variables: Any, resident: Split | None, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        if resident is not None:
            batch = batch | gather(resident, batch["index"])
        log_probs = score(model, normalization, variables, batch["image"], batch.get("size"))
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
        disable = not parallel.is_main_process()
        with tqdm(total=count * len(scales), desc="evaluating", delay=1, leave=False, disable=disable) as bar:
            for passes in scales:
                log_probs = np.full_like(total, -np.inf)
                for view, batch_size in passes:
                    for batch in evaluation_inputs(config, data, split, view, batch_size, mesh):
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
    index comes first, as in a sorted list of the classes. A score that is not a number beats nothing.

    Raises UserError if there are no examples.
    """
    found = scores.labels >= 0
    log_probs, labels = scores.log_probs[found], scores.labels[found, None]
    if not len(labels):
        raise UserError("there is not one readable example in the split; correct config.data_dir")
    own = np.take_along_axis(log_probs, labels, axis=1)
    before = (log_probs > own) | ((log_probs == own) & (np.arange(log_probs.shape[1]) < labels))
    rank = np.where(np.isnan(own[:, 0]), log_probs.shape[1], before.sum(axis=1))
    return {
        "num_examples": len(labels),
        "top1_error": round(100 * float((rank >= 1).mean()), 4),
        "top5_error": round(100 * float((rank >= 5).mean()), 4),
        "loss": -float(own.mean(dtype=np.float64)),
    }
