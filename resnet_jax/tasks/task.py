"""What a network is trained for: everything that the training step and loop ask of it, and the programs of its part.

The part of a config that makes a task has, besides its keys:

- ``data_kinds``: the kinds of config.data that it takes; ``has_responses``: whether Figure 7 can be drawn of it;
  ``draws_scores``: whether ``write_scores`` draws a PNG file beside its table; ``any_size``: whether photographs of
  any size are looked at, for which there is no mean image; ``keys_of_network``: how its keys begin that say what a
  trained network computes, and that no weights tell of;
- ``network(create, num_classes)``: what is trained, out of ``create(num_classes)``, the network of config.model;
- ``make(...)`` and ``without_data(network)``: the ``Task``;
- ``networks(network)``: what config.finetune is of, the classification networks in it, by the places of their
  variables;
- ``updates_statistics(network)``: whether training changes batch statistics;
- ``needs_weights(network)``: whether something is frozen that would stay random without config.init;
- ``starting(network, weights, keep_head, image_shape)``: which of given variables a run starts with, and where;
- ``load_torch(name, path, network, overrides, channels)``: variables out of a file of PyTorch weights, for images of so
  many channels; ``save_torch(path, network, variables)``: into one;
- ``score(members, dataset, split, mesh, batch_size, protocol)``: the ``Score`` of an ensemble;
- ``write_scores(path, details, dataset, split)``: the details of a ``Score`` as a CSV file;
- ``predict(member, class_names, paths, look)``: what is in photographs, each ``Described``; ``look`` is that of
  config.data.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax

from resnet_jax.data.normalization import Normalization

Batch = dict[str, Any]
Variables = dict[str, Any]


class Member(NamedTuple):
    """A trained network: what a task's part made of config.model, what its images go through, and its variables."""

    model: Any
    normalization: Normalization
    variables: Any


class Score(NamedTuple):
    """figures: those of a line of results, by name. summary: the main ones, to read. details: what they came of."""

    figures: dict[str, Any]
    summary: str
    details: Any


class Described(NamedTuple):
    """What is in a photograph, in lines to read; ``draw(path)`` writes it as a PNG file."""

    path: Path
    lines: list[str]
    draw: Callable[[Path], None]


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

    @property
    def drawn(self) -> tuple[str, ...]:
        """Names of figures in percent whose curves are drawn: those in training and in evaluation."""

    @property
    def picture(self) -> str:
        """The file of that drawing in the workdir."""

    def init(self, key: jax.Array, image_shape: tuple[int, ...]) -> Variables:
        """{"params", "batch_stats"} for images (H, W, C), a function of ``key``; traced."""

    def trained(self, image_shape: tuple[int, ...]) -> Any:
        """A tree like the parameters of bools, false for those that are never changed; None: all are trained."""

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
