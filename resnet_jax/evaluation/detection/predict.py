"""Detections in any photographs: what predict.py prints and draws for a detector or localiser."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from resnet_jax.data.decode.boxes import Look, whole_box
from resnet_jax.data.decode.images import UnreadableImage, crop_and_resize, image_size
from resnet_jax.data.detection.placing import canvas_groups, original_boxes, scale_of
from resnet_jax.detection import second_stage
from resnet_jax.errors import UserError, one_line
from resnet_jax.evaluation.detection.detections import Detections


def detections_in(
    find: Callable[[Any, dict[str, jax.Array]], second_stage.Detections],
    variables: Any,
    stride: int,
    paths: Sequence[Path],
    look: Look,
) -> Iterator[tuple[Path, Detections]]:
    """(path, detections in pixels of the photograph) of each file that can be decoded, in order.

    ``find(variables, batch)``, traced, gives those of a batch with "image" (1, H, W, 3) uint8 and "image_hw" (1, 2).
    Photographs are seen whole, resized as ``look`` says, and lie on at most two canvases, in multiples of ``stride``,
    so that at most two programs are compiled. A file that cannot be decoded is named on stderr and skipped; raises
    UserError if none can.
    """
    none_decoded = UserError(f"none of {len(paths)} files can be decoded; name photographs")
    sizes = {path: size for path in paths if (size := _size(path)) is not None}
    if not sizes:
        raise none_decoded
    groups, canvases = canvas_groups(np.array(list(sizes.values())), look, stride)
    compiled, decoded = jax.jit(find), False
    for (path, size), group in zip(sizes.items(), groups, strict=True):
        height, width = resized = look.resized(*size)
        image = np.zeros((1, *canvases[group], 3), np.uint8)
        try:
            image[0, :height, :width] = crop_and_resize(
                path.read_bytes(), whole_box, resized, interpolation=look.interpolation
            )
        except (UnreadableImage, OSError) as error:  # Its header could be read, but not the rest.
            _warn(path, error)
            continue
        decoded = True
        batch = {"image": image, "image_hw": np.array([resized], np.int32)}
        found: Any = jax.device_get(compiled(variables, batch))
        valid = found.valid[0]
        boxes = original_boxes(found.boxes[0][valid], scale_of(size, resized))
        yield path, Detections(boxes, found.scores[0][valid], found.labels[0][valid])
    if not decoded:
        raise none_decoded


def _size(path: Path) -> tuple[int, int] | None:
    try:
        return image_size(path.read_bytes())
    except (UnreadableImage, OSError) as error:
        _warn(path, error)
        return None


def _warn(path: Path, error: Exception) -> None:
    print(f"warning: {path} cannot be decoded ({one_line(error)})", file=sys.stderr)
