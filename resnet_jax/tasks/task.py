"""What a network is trained for: everything that the training step and loop ask of it."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax

Batch = dict[str, Any]
Variables = dict[str, Any]


class Task(Protocol):
    """A loss with its batches, and an evaluation. ``train`` knows networks and labels only through one of these."""

    @property
    def title(self) -> str:
        """What is trained on what, such as "resnet20 on cifar10", for pictures."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the metrics that ``loss`` gives. The hold rule of a schedule reads the first."""

    @property
    def percentages(self) -> frozenset[str]:
        """Those metrics that are fractions in [0, 1] and are recorded in percent."""

    @property
    def best(self) -> str:
        """The figure of ``evaluate``, lower is better, that picks the best checkpoint and finds plateaus."""

    @property
    def recorded(self) -> Mapping[str, str]:
        """The figures of ``evaluate`` that are recorded, each with its name there, to which the split's is prefixed."""

    def init(self, key: jax.Array, image_shape: tuple[int, ...]) -> Variables:
        """{"params", "batch_stats"} for images (H, W, C), a function of ``key``; traced."""

    def prepare(self, key: jax.Array, batch: Batch) -> Batch:
        """What ``loss`` takes, out of a batch with uint8 images (B, H, W, C); random only in ``key``; traced."""

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        """(mean loss, (scalar metrics by name, new batch statistics)) in training; random only in ``key``; traced.

        Top-level modules that are left out of the statistics keep theirs.
        """

    def statistics(self, variables: Variables, batch: Batch, key: jax.Array) -> Any:
        """The batch statistics of one prepared batch alone, all of it together, in training; traced.

        Without those that training keeps, as in ``loss``.
        """

    def evaluate(self, variables: Variables) -> dict[str, float]:
        """Exact figures over the data set's evaluation split, called by every process of a job."""
