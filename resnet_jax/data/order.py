"""Which example comes when: a function of the seed and the place in the run, so that a restart repeats it."""

from functools import lru_cache

import numpy as np


def example_indices(
    seed: int, positions: np.ndarray, num_examples: int, repeats: int = 1, batch_size: int = 1
) -> np.ndarray:
    """The examples at ``positions`` (any shape, from 0) of the endless shuffled stream over a data set, int32.

    Each pass over the data is a new permutation, a function of (seed, epoch). Step s of a run with batches of B takes
    the positions s * B to (s + 1) * B - 1; batches thus run on across the end of a pass, and every example is seen
    exactly once a pass whatever the batch size.

    With ``repeats`` of r each example is taken r times in a row, and a pass thus shows 1 / r of the examples (repeated
    augmentation: Hoffer et al., arXiv 1901.09335; the sampler of DeiT and torchvision). Within a batch of
    ``batch_size`` all first copies come before all second ones, and so on, so that neither a device nor a group of
    batch normalisation, if it has at most 1 / r of the batch, sees an example twice.
    """
    if repeats > 1:
        batches, places = np.divmod(positions, batch_size)
        positions = batches * batch_size + np.argsort(np.arange(batch_size) % repeats, kind="stable")[places]
    epochs, offsets = np.divmod(positions, num_examples)
    indices = np.empty(np.shape(positions), np.int32)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = _epoch_order(seed, int(epoch), num_examples)[offsets[here] // repeats]
    return indices


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_examples)
