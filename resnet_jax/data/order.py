"""Which example comes when: a function of the seed and the place in the run, so that a restart repeats it."""

from functools import lru_cache

import numpy as np


def example_indices(seed: int, positions: np.ndarray, num_examples: int) -> np.ndarray:
    """The examples at ``positions`` (any shape, from 0) of the endless shuffled stream over a data set, int32.

    Each pass over the data is a new permutation, a function of (seed, epoch). Step s of a run with batches of B takes
    the positions s * B to (s + 1) * B - 1; batches thus run on across the end of a pass, and every example is seen
    exactly once a pass whatever the batch size.
    """
    epochs, offsets = np.divmod(positions, num_examples)
    indices = np.empty(np.shape(positions), np.int32)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = _epoch_order(seed, int(epoch), num_examples)[offsets[here]]
    return indices


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_examples)
