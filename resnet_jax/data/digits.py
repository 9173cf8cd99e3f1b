"""The handwritten digits inside scikit-learn: 1,797 real images that need no download."""

import numpy as np
from sklearn.datasets import load_digits

NUM_TEST = 360


def load(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 32, 32, 3) uint8 and labels (N,) int32 of "train" (1,437) or "test" (360), always the same split.

    The 8x8 images with 17 grey levels are repeated to 32x32 and spread over 0..255.
    """
    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(np.repeat(grey, 4, axis=1), 4, axis=2)
    images = np.repeat(images[..., None], 3, axis=3)
    order = np.random.default_rng(0).permutation(len(images))
    chosen = order[:NUM_TEST] if split == "test" else order[NUM_TEST:]
    return images[chosen], digits.target[chosen].astype(np.int32)
