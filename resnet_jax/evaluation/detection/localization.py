"""ImageNet's localisation error (appendix C; Russakovsky et al. 2015, section 4.2)."""

from collections.abc import Sequence

import numpy as np

from resnet_jax.evaluation.detection.detections import Detections, Truth, best, overlaps


def localization_errors(
    truth: Truth, guesses: Sequence[Detections], top: int = 5, iou_threshold: float = 0.5
) -> np.ndarray:
    """(N,) bool, whether none of the ``top`` surest guesses is right for each photograph; their mean is the error.

    A guess, a class with a box, is right if it overlaps an object of its class by at least ``iou_threshold``. With the
    object's own class as the only guess of a photograph, it is the error under given classes of table 13.
    """
    if len(truth) != len(guesses):
        raise ValueError(f"{len(truth)} photographs with objects, but {len(guesses)} with guesses")
    wrong = np.ones(len(truth), bool)
    for image, (objects, found) in enumerate(zip(truth, guesses, strict=True)):
        chosen = best(found, top)
        right = overlaps(chosen.boxes, objects.boxes) >= iou_threshold
        wrong[image] = not (right & (chosen.labels[:, None] == objects.labels[None, :])).any()
    return wrong
