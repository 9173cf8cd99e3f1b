"""Detections in any photographs: what predict.py prints and draws for a detector."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from resnet_jax.data.decode.boxes import whole_box
from resnet_jax.data.decode.images import UnreadableImage, crop_and_resize, image_size
from resnet_jax.data.detection.placing import canvas_groups, original_boxes, resized_size, scale_of
from resnet_jax.data.normalization import Normalization
from resnet_jax.detection.faster_rcnn import FasterRCNN
from resnet_jax.errors import UserError, one_line
from resnet_jax.evaluation.detection.detections import Detections
from resnet_jax.evaluation.detection.detector import SINGLE, detect_batch


def detections_in(
    model: FasterRCNN,
    normalize: Normalization,
    variables: Any,
    paths: Sequence[Path],
    short_side: int,
    max_side: int,
) -> Iterator[tuple[Path, Detections]]:
    """(path, detections in pixels of the photograph) of each file that can be decoded, in order.

    Photographs are resized as in evaluation and lie on at most two canvases, so that at most two programs are
    compiled. A file that cannot be decoded is named on stderr and skipped; raises UserError if none can.
    """
    sizes = {path: size for path in paths if (size := _size(path)) is not None}
    if not sizes:
        raise UserError(f"none of {len(paths)} files can be decoded; name photographs")
    stride = max(model.backbone.strides[: model.backbone.roi_levels])
    groups, canvases = canvas_groups(np.array(list(sizes.values())), short_side, max_side, stride)

    @jax.jit
    def detect(variables: Any, image: jax.Array, image_hw: jax.Array) -> Any:
        batch = {"image": image, "image_hw": image_hw}
        return detect_batch([model], [normalize], [variables], [batch], SINGLE)

    for (path, size), group in zip(sizes.items(), groups, strict=True):
        height, width = resized = resized_size(*size, short_side, max_side)
        image = np.zeros((1, *canvases[group], 3), np.uint8)
        try:
            image[0, :height, :width] = crop_and_resize(path.read_bytes(), whole_box, resized)
        except (UnreadableImage, OSError) as error:  # Its header could be read, but not the rest.
            _warn(path, error)
            continue
        found: Any = jax.device_get(detect(variables, image, np.array([resized], np.int32)))
        valid = found.valid[0]
        boxes = original_boxes(found.boxes[0][valid], scale_of(size, resized))
        yield path, Detections(boxes, found.scores[0][valid], found.labels[0][valid])


def _size(path: Path) -> tuple[int, int] | None:
    try:
        return image_size(path.read_bytes())
    except (UnreadableImage, OSError) as error:
        _warn(path, error)
        return None


def _warn(path: Path, error: Exception) -> None:
    print(f"warning: {path} cannot be decoded ({one_line(error)})", file=sys.stderr)
