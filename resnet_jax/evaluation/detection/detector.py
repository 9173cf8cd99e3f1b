"""What one or several detectors find in every photograph of a split: each once, at any batch size and device count."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from resnet_jax import parallel
from resnet_jax.data.detection.dataset import DetectionDataset
from resnet_jax.data.detection.placing import original_boxes
from resnet_jax.data.feed import evaluation_inputs
from resnet_jax.data.normalization import Normalization
from resnet_jax.detection import second_stage
from resnet_jax.detection.faster_rcnn import FasterRCNN
from resnet_jax.detection.rpn import Proposals
from resnet_jax.detection.second_stage import Predictions
from resnet_jax.detection.tta import ensemble, ensemble_proposals, multi_scale, refine
from resnet_jax.evaluation.detection.detections import Detections

Batch = dict[str, jax.Array]


class Testing(NamedTuple):
    """How a photograph is looked at (Table 9).

    refine: features are re-pooled at the predicted boxes, and boxes vote; ``vote`` is the least IoU of those
        that do. scales: the shorter sides, in rising order, of which each region reads the two adjacent ones where
        its own side is nearest to ``canonical`` pixels; (): the one size of evaluations. proposals: what is found
        are the regions of the first stage, all of label 0, with its probabilities.
    """

    refine: bool = False
    vote: float = 0.5
    scales: tuple[int, ...] = ()
    canonical: float = 224.0
    proposals: bool = False


SINGLE = Testing()
PROPOSALS = Testing(proposals=True)


class Found(NamedTuple):
    """indices: the photographs of the split that could be decoded, in order. detections: in each, in its own pixels.

    overflow: boxes of all photographs that scored above the least score and were not looked at because there were too
    many. shapes: the batch shapes that occurred; one program was compiled for each.
    """

    indices: list[int]
    detections: list[Detections]
    overflow: int
    shapes: set[tuple[int, ...]]


def on_canvas(normalization: Normalization, images: jax.Array, image_hw: jax.Array) -> jax.Array:
    """Normalised images (B, H, W, 3) of uint8 canvases, 0 beyond each photograph's ``image_hw`` (B, 2); traced.

    0 is what convolutions pad with.
    """
    inside = [jnp.arange(size)[None, :] < image_hw[:, axis, None] for axis, size in enumerate(images.shape[1:3])]
    mask = inside[0][:, :, None] & inside[1][:, None, :]
    return jnp.where(mask[..., None], normalization(images), 0)


def make_detector(
    models: Sequence[FasterRCNN],
    normalizations: Sequence[Normalization],
    dataset: DetectionDataset,
    split: str,
    mesh: Mesh,
    batch_size: int,
    testing: Testing = SINGLE,
) -> Callable[[Sequence[Any]], Found]:
    """``variables of each model -> Found`` of a split; compiles on its first call.

    Several models are an ensemble: the regions that any of them proposes, and the mean of what they say of each
    (appendix B). Suppression is by the first one's settings. ``batch_size`` is the number of photographs over all
    devices, and does not change what is found.
    """
    views = [dataset.whole_views(split), *(dataset.whole_views(split, scale) for scale in testing.scales)]

    def step(variables: Sequence[Any], batches: Sequence[Batch]) -> Any:
        found = detect_batch(models, normalizations, variables, batches, testing)
        return found, batches[0]["scale"], batches[0]["index"]

    # Replicated, because every process of a job scores for itself.
    compiled = jax.jit(step, out_shardings=parallel.replicated(mesh))
    wanted = ("image", "image_hw", "scale", "index")

    def evaluate(variables: Sequence[Any]) -> Found:
        by_index: dict[int, Detections] = {}
        overflow, shapes = 0, set()

        def keep(result: Any) -> int:
            nonlocal overflow
            if result is None:
                return 0
            found, scale, index = jax.device_get(result)
            boxes = original_boxes(found.boxes, scale)
            for row in np.flatnonzero(index >= 0):
                valid = found.valid[row]
                by_index[int(index[row])] = Detections(
                    boxes[row][valid], found.scores[row][valid], found.labels[row][valid]
                )
                overflow += int(found.overflow[row])
            return int((index >= 0).sum())

        hidden = None if parallel.is_main_process() else True  # None: only where stderr is a terminal.
        total = sum(view.count for view in views[0])
        with tqdm(total=total, desc="evaluating", delay=1, leave=False, disable=hidden) as bar:
            previous: Any = None
            # Photographs lie on the same canvas, upright or not, and in the same order, at each scale.
            for same in zip(*views, strict=True):
                inputs = (evaluation_inputs(dataset, split, view, batch_size, mesh) for view in same)
                for batches in zip(*inputs, strict=True):
                    batches = tuple({key: batch[key] for key in wanted} for batch in batches)
                    result = compiled(variables, batches)
                    shapes.add(batches[0]["image"].shape)
                    bar.update(keep(previous))  # While the device computes this one.
                    previous = result
            bar.update(keep(previous))
        indices = sorted(by_index)
        return Found(indices, [by_index[index] for index in indices], overflow, shapes)

    return evaluate


def detect_batch(
    models: Sequence[FasterRCNN],
    normalizations: Sequence[Normalization],
    variables: Sequence[Any],
    batches: Sequence[Batch],
    testing: Testing,
) -> second_stage.Detections:
    """Detections on the canvases of ``batches[0]``; the others are the same photographs at the scales; traced.

    Batches have "image" (B, H, W, 3) uint8, "image_hw" (B, 2), and with scales "scale" (B, 2).
    """
    first, *others = batches
    image_hw, padded_hw = first["image_hw"], first["image"].shape[1:3]
    networks = list(zip(models, normalizations, variables, strict=True))

    def features(model: FasterRCNN, normalize: Normalization, own: Any, batch: Batch) -> Any:
        images = on_canvas(normalize, batch["image"], batch["image_hw"])
        return model.apply(own, images, method="features")

    def sizes(batch: Batch) -> jax.Array:  # Against the first; height and width differ by rounding.
        return jnp.mean(batch["scale"] / first["scale"], axis=1)

    def propose(model: FasterRCNN, normalize: Normalization, own: Any, own_maps: Any) -> Any:
        if model.rpn_backbone is not None:
            images = on_canvas(normalize, first["image"], image_hw)
            own_maps = model.apply(own, images, method="rpn_maps")
        return model.apply(own, own_maps, padded_hw, image_hw, method="propose")

    maps = [features(*network, first) for network in networks]
    proposed = [propose(*network, own_maps) for network, own_maps in zip(networks, maps, strict=True)]
    proposals = ensemble_proposals(proposed) if len(proposed) > 1 else proposed[0]
    if testing.proposals:
        none = jnp.zeros(len(image_hw), jnp.int32)
        labels = jnp.zeros(proposals.valid.shape, jnp.int32)
        return second_stage.Detections(proposals.boxes, jax.nn.sigmoid(proposals.scores), labels, proposals.valid, none)
    pyramids = [[(features(*network, batch), sizes(batch)) for batch in others] for network in networks]

    def predict(proposals: Proposals) -> Predictions:
        each: list[Any] = []
        for (model, _, own), own_maps, pyramid in zip(networks, maps, pyramids, strict=True):
            if pyramid:
                each.append(multi_scale(model, own, pyramid, proposals, image_hw, testing.canonical))
            else:
                each.append(model.apply(own, own_maps, proposals, image_hw, method="predict"))
        return ensemble(models, each) if len(each) > 1 else each[0]

    predictions = predict(proposals)
    settings = models[0].box
    if testing.refine:
        predictions = refine(predict, predictions, image_hw, settings)
        settings = settings._replace(vote=testing.vote)
    return second_stage.detect(predictions, image_hw, settings)
