"""The weights that the files of tests/golden were computed with."""

import zlib

import numpy as np


def drawn(shapes):
    """A state dict of NumPy arrays: each key seeds the generator of its array."""

    def draw(key, shape):
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        if key.endswith("num_batches_tracked"):
            return np.zeros(shape)
        if len(shape) > 1:
            return rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        if key.endswith("running_var"):
            return rng.uniform(0.5, 1.5, shape)
        return rng.uniform(0.3, 0.9, shape) if key.endswith("weight") else rng.normal(0, 0.1, shape)

    return {key: np.asarray(draw(key, shape), np.float32) for key, shape in shapes.items()}
