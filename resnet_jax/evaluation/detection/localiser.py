"""Where localisers find given classes in every photograph of a split, and their errors (appendix C, Table 13)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from resnet_jax import parallel
from resnet_jax.data.chunks import PhotographView
from resnet_jax.data.detection.dataset import DetectionDataset
from resnet_jax.data.detection.placing import original_boxes
from resnet_jax.data.feed import evaluation_inputs
from resnet_jax.data.normalization import Normalization
from resnet_jax.data.sources.detection.protocol import ObjectTable
from resnet_jax.detection.localiser import Localiser, Located, Stage
from resnet_jax.errors import UserError
from resnet_jax.evaluation.detection.detections import Detections
from resnet_jax.evaluation.detection.detector import on_canvas
from resnet_jax.evaluation.detection.localization import localization_errors


class Answers(NamedTuple):
    """The boxes of classes in photographs: N of a split, L classes of each.

    boxes: (N, L, 4) float64 in pixels of the photographs. scores: (N, L) float32, logits; -inf where none was found, or
    the photograph cannot be decoded. labels: (N, L), the classes. shapes: the batch shapes that occurred.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    shapes: set[tuple[int, ...]]


class Localised(NamedTuple):
    """figures: by name, errors in percent. answers: what they are of, the first of each photograph for its own class.

    wrong: by photograph that counts, whether the box of its own class is wrong.
    """

    figures: dict[str, float]
    answers: Answers
    wrong: dict[int, bool]


def locate(
    model: Localiser,
    normalize: Normalization,
    variables: Any,
    batch: dict[str, jax.Array],
    labels: jax.Array,
    stage: Stage,
) -> Located:
    """The boxes of classes (B, L) in a batch with "image" (B, H, W, 3) uint8 and "image_hw" (B, 2); traced."""
    images = on_canvas(normalize, batch["image"], batch["image_hw"])

    def of(labels: jax.Array) -> Any:
        return model.apply(variables, images, batch["image_hw"], labels, stage=stage)

    if stage == "rpn":
        return of(labels)
    # Class by class, as each has 200 regions of each image.
    found = jax.lax.map(lambda one: of(one[:, None]), labels.T)
    return Located(*(jnp.swapaxes(x[:, :, 0], 0, 1) for x in found))


def make_localiser(
    models: Sequence[Localiser],
    normalizations: Sequence[Normalization],
    dataset: DetectionDataset,
    split: str,
    mesh: Mesh,
    batch_size: int,
    stage: Stage,
    scales: Sequence[Sequence[PhotographView]],
) -> Callable[[Sequence[Any], np.ndarray], Answers]:
    """``(variables of each model, labels (N, L)) -> Answers`` for the N photographs of a split; compiles when called.

    scales: for each the views that together show every photograph once. Of all scales and models the surest box of a
    class is its answer. ``batch_size`` is the number of photographs over all devices, and changes no answer.
    """

    def step_of(model: Localiser, normalize: Normalization) -> Any:
        def step(variables: Any, labels: jax.Array, batch: dict[str, jax.Array]) -> Any:
            own = labels[jnp.maximum(batch["index"], 0)]
            return locate(model, normalize, variables, batch, own, stage), batch["scale"], batch["index"]

        # Replicated, because every process of a job scores for itself.
        return jax.jit(step, out_shardings=parallel.replicated(mesh))

    steps = [step_of(*pair) for pair in zip(models, normalizations, strict=True)]
    wanted = ("image", "image_hw", "scale", "index")

    def evaluate(variables: Sequence[Any], labels: np.ndarray) -> Answers:
        photographs = dataset.photographs(split)
        boxes, scores = np.zeros((*labels.shape, 4)), np.full(labels.shape, -np.inf, np.float32)
        asked = parallel.to_global(labels.astype(np.int32), parallel.replicated(mesh))
        shapes = set()

        def keep(result: Any, view: PhotographView) -> int:
            found, scale, index = jax.device_get(result)
            original = original_boxes(found.boxes, scale)
            there = np.flatnonzero(index >= 0)
            for row in there:
                place = int(index[row])
                top, left = view.look.box(*photographs.size(place))[:2]
                better = found.scores[row] > scores[place]
                boxes[place][better] = original[row][better] + (left, top, left, top)
                scores[place][better] = found.scores[row][better]
            return len(there)

        hidden = None if parallel.is_main_process() else True  # None: only where stderr is a terminal.
        total = len(steps) * sum(view.count for views in scales for view in views)
        with tqdm(total=total, desc="evaluating", delay=1, leave=False, disable=hidden) as bar:
            for view in (view for views in scales for view in views):
                for compiled, own in zip(steps, variables, strict=True):
                    previous: Any = None
                    for batch in evaluation_inputs(dataset, split, view, batch_size, mesh):
                        result = compiled(own, asked, {key: batch[key] for key in wanted})
                        shapes.add(batch["image"].shape)
                        if previous is not None:
                            bar.update(keep(previous, view))  # While the device computes this one.
                        previous = result
                    if previous is not None:
                        bar.update(keep(previous, view))
        return Answers(boxes, scores, labels, shapes)

    return evaluate


def own_classes(table: ObjectTable) -> np.ndarray:
    """(N,) int32, the class of each photograph: that of its first object; -1 where there is none.

    ImageNet's photographs show objects of one class, as far as they are annotated.
    """
    found = [objects.labels[~objects.crowd] for objects in table]
    return np.array([labels[0] if len(labels) else -1 for labels in found], np.int32)


def score_localiser(
    answer: Callable[[np.ndarray], Answers], dataset: DetectionDataset, split: str, predicted: np.ndarray | None = None
) -> Localised:
    """ "given_class_error", of the box of each photograph's own class, and the errors of classes that are predicted.

    predicted: (N, P) classes of the photographs of the split, the likeliest first. "top1_localisation_error" and
    "top5_localisation_error" are of the first and the first five of them: one must be an object's class, with a box
    that overlaps it by at least 0.5 (Russakovsky et al. 2015, section 4.2). Raises UserError where no photograph that
    can be decoded has an object.
    """
    table = dataset.ground_truth(split)
    own = own_classes(table)
    counted = np.flatnonzero((own >= 0) & (dataset.photographs(split).sizes[:, 0] > 0)).tolist()
    if not counted:
        raise UserError(f"no photograph of the split {split!r} has an object and can be decoded; choose another split")
    asked = np.maximum(own, 0)[:, None]
    answers = answer(asked if predicted is None else np.concatenate([asked, predicted], axis=1))
    truth = [table[index] for index in counted]

    def error(first: int, count: int) -> np.ndarray:
        part = slice(first, first + count)
        guesses = []
        for index in counted:
            labels = answers.labels[index, part]
            guesses.append(Detections(answers.boxes[index, part], -np.arange(len(labels)), labels))
        return localization_errors(truth, guesses, top=count)

    wrong = error(0, 1)
    figures = {"given_class_error": 100 * float(wrong.mean())}
    if predicted is not None:
        figures |= {f"top{top}_localisation_error": 100 * float(error(1, top).mean()) for top in (1, 5)}
    return Localised(figures, answers, dict(zip(counted, wrong.tolist(), strict=True)))
