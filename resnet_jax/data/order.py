"""Which example comes when: a function of the seed and the place in the run, so that a restart repeats it."""

from dataclasses import dataclass
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


@dataclass(frozen=True, eq=False)
class GroupedOrder:
    """The order of batches that hold examples of one group each, such as photographs of one canvas.

    The endless shuffled stream of ``example_indices`` is dealt out to the groups, and whenever a group has
    ``batch_size`` examples they are the next batch. What a group is left with at the end of a pass, fewer than
    ``batch_size`` examples, waits for the next pass: every example is seen exactly once a pass, a few of them late.
    With one group the batches are those of ``example_indices``.

    groups: (N,) the group of each example, from 0; each group has one.
    """

    seed: int
    batch_size: int
    groups: np.ndarray

    def batch(self, step: int) -> tuple[int, np.ndarray]:
        """The group of a step's batch and its examples, (batch_size,) int32."""
        counts = np.bincount(self.groups)
        # In e passes a group of n examples fills e * n // batch_size batches, whatever the order is.
        epoch = step * self.batch_size // len(self.groups)
        while ((epoch + 1) * counts // self.batch_size).sum() <= step:
            epoch += 1
        filled = epoch * counts // self.batch_size
        place = step - int(filled.sum())
        batches = _batches_of_epoch(self, epoch)
        group = int(batches[place])
        number = int(filled[group] + np.count_nonzero(batches[:place] == group))
        positions = np.arange(number * self.batch_size, (number + 1) * self.batch_size)
        epochs, offsets = np.divmod(positions, counts[group])
        found = [_group_order(self, int(e), group)[offset] for e, offset in zip(epochs, offsets, strict=True)]
        return group, np.array(found, np.int32)


@lru_cache(maxsize=2)
def _batches_of_epoch(order: GroupedOrder, epoch: int) -> np.ndarray:
    """The groups of the batches that a pass fills, in the order in which it does."""
    groups = order.groups[_epoch_order(order.seed, epoch, len(order.groups))]
    full = np.zeros(len(groups), bool)
    for group, count in enumerate(np.bincount(groups)):
        here = np.flatnonzero(groups == group)
        full[here] = (epoch * int(count) + np.arange(1, len(here) + 1)) % order.batch_size == 0
    return groups[full]


@lru_cache(maxsize=8)
def _group_order(order: GroupedOrder, epoch: int, group: int) -> np.ndarray:
    """The examples of a group in the order of a pass."""
    examples = _epoch_order(order.seed, epoch, len(order.groups))
    return examples[order.groups[examples] == group]
