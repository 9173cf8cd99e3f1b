"""Where photographs and their boxes come to lie on the canvases of batches. Imports no jax."""

import numpy as np

from resnet_jax.data.decode.boxes import Look, RealBox
from resnet_jax.data.sources.detection.protocol import Objects


def canvas_groups(sizes: np.ndarray, look: Look, stride: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """The group of each photograph (N,) and the (height, width) of the canvas of each group: one or two.

    sizes: (N, 2), heights and widths. Upright photographs are one group, the others the other; a group without
    photographs is left out. Its canvas is the smallest that holds all of them once they are resized, in multiples of
    ``stride``.
    """
    upright = sizes[:, 0] > sizes[:, 1]
    groups = np.zeros(len(sizes), np.int32)
    canvases: list[tuple[int, int]] = []
    for chosen in (~upright, upright):
        if chosen.any():
            groups[chosen] = len(canvases)
            # Of photographs of many sizes few differ.
            resized = [look.resized(int(h), int(w)) for h, w in np.unique(sizes[chosen], axis=0)]
            height, width = (-(-max(sides) // stride) * stride for sides in zip(*resized, strict=True))
            canvases.append((height, width))
    return groups, canvases


def scale_of(size: tuple[float, float], resized: tuple[int, int]) -> np.ndarray:
    """(2,) float32, by how much height and width have grown; they differ by the rounding to whole pixels."""
    return (np.array(resized) / np.array(size)).astype(np.float32)


def seen_in(objects: Objects, box: RealBox) -> Objects:
    """The same objects in pixels of a box (top, left, height, width) of their photograph, which they may leave."""
    top, left = box[:2]
    return objects._replace(boxes=objects.boxes - (left, top, left, top))


def place_objects(
    objects: Objects, size: tuple[float, float], resized: tuple[int, int], mirrored: bool, max_boxes: int
) -> dict[str, np.ndarray]:
    """The objects of a photograph of (height, width) ``size`` in a batch: "boxes" (G, 4) float32 and so on.

    Boxes are clipped to the photograph, resized, and mirrored; the first ``max_boxes`` = G are kept, those that are no
    crowd first. "valid" says which rows are objects with an area in it. One that lies outside keeps its label; where
    there is no object all is 0.
    """
    height, width = size
    chosen = np.argsort(objects.crowd, kind="stable")[:max_boxes]
    count = len(chosen)
    boxes = (
        clipped(objects.boxes[chosen], size) * (np.array(resized * 2) / (height, width, height, width))[[1, 0, 3, 2]]
    )
    if mirrored:
        boxes = np.stack([resized[1] - boxes[:, 2], boxes[:, 1], resized[1] - boxes[:, 0], boxes[:, 3]], axis=1)
    placed = {
        "boxes": np.zeros((max_boxes, 4), np.float32),
        "labels": np.zeros(max_boxes, np.int32),
        "crowd": np.zeros(max_boxes, bool),
        "difficult": np.zeros(max_boxes, bool),
        "valid": np.zeros(max_boxes, bool),
    }
    placed["boxes"][:count] = boxes
    placed["valid"][:count] = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    placed["labels"][:count] = objects.labels[chosen]
    placed["crowd"][:count] = objects.crowd[chosen]
    placed["difficult"][:count] = objects.difficult[chosen]
    return placed


def clipped(boxes: np.ndarray, size: tuple[float, float]) -> np.ndarray:
    """Boxes (n, 4) within a photograph of (height, width)."""
    height, width = size
    return np.clip(boxes, 0, (width, height, width, height))


def original_boxes(boxes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Boxes (..., n, 4) of a canvas in pixels of the photograph; ``scale`` (..., 2) is that of the batch.

    Of a crop they count from its own corner.
    """
    return boxes / scale[..., None, [1, 0, 1, 0]]
