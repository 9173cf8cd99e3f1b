"""Classification: cross-entropy with one label, or soft targets, for each image."""

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from pydantic import model_validator

from resnet_jax.data.dataset import Dataset
from resnet_jax.data.decode.boxes import Look
from resnet_jax.data.normalization import Normalization
from resnet_jax.data.transforms import Transforms
from resnet_jax.evaluation.classify import Scores, error_rates, log_add, make_evaluator
from resnet_jax.evaluation.predict import draw, predict
from resnet_jax.evaluation.records import write_scores
from resnet_jax.interop.torch_keys import stem_kernel
from resnet_jax.interop.torch_weights import load_torch, save_torch
from resnet_jax.models.model import Model
from resnet_jax.models.stacking import stack_blocks, unstack_blocks
from resnet_jax.parts import Fraction, Part
from resnet_jax.tasks.fitting import check_fit
from resnet_jax.tasks.task import Batch, Described, Member, Score, Variables

Loss: TypeAlias = Literal["softmax", "bce"]


class ClassificationPart(Part):
    """What all tasks with one class for each image have in common; ``tasks.task`` says what it is for."""

    data_kinds: ClassVar[tuple[str, ...]] = ("resident", "photographs")
    has_responses: ClassVar[bool] = True
    draws_scores: ClassVar[bool] = False
    any_size: ClassVar[bool] = False
    keys_of_network: ClassVar[tuple[str, ...]] = ()

    def network(self, create: Callable[[int], Model], num_classes: int) -> Model:
        """The network itself."""
        return create(num_classes)

    def networks(self, model: Model) -> dict[tuple[str, ...], Model]:
        """The network itself."""
        return {(): model}

    def updates_statistics(self, model: Model) -> bool:
        """Whether training changes batch statistics."""
        return model.has_batch_norm

    def needs_weights(self, model: Model) -> bool:
        """Whether stages are frozen, which would be random."""
        return bool(model.frozen_stages)

    def starting(self, model: Any, weights: Variables, keep_head: bool, image_shape: tuple[int, int, int]) -> Variables:
        """The weights, without their head unless it is kept, in the layout of ``model``.

        For images of one channel a stem's kernel for three is summed over them, as by ``load_torch``. Raises UserError.
        """
        weights = _for_grey(weights, model) if image_shape[-1] == 1 else weights
        task, kept = ClassificationTask(model.scanned()), dict(weights)
        template = jax.eval_shape(lambda: task.init(jax.random.key(0), image_shape))
        views = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), template)
        expected = views if model.scanned() == model.unrolled() else unstack_blocks(views)
        if not keep_head:
            kept, expected = (
                {name: {module: leaves for module, leaves in tree[name].items() if module != "head"} for name in tree}
                for tree in (kept, expected)
            )
        check_fit(kept, expected)
        return kept if model == model.unrolled() else stack_blocks(kept)

    def load_torch(
        self, name: str, path: Path, model: Model, overrides: Mapping[str, Any], channels: int = 3
    ) -> Variables:
        """Variables of the network ``name`` from PyTorch weights. Raises UserError."""
        return load_torch(name, source=path, num_classes=model.num_classes, channels=channels, **overrides)

    def save_torch(self, path: Path, model: Model, variables: Mapping[str, Any]) -> None:
        """Writes PyTorch weights. Raises UserError."""
        save_torch(variables, path, model=model)

    def score(
        self,
        members: Sequence[Member],
        dataset: Dataset,
        split: str,
        mesh: Mesh,
        batch_size: int,
        protocol: str = "single",
    ) -> Score:
        """The error rates of an ensemble, whose probabilities are averaged; the details are its ``Scores``."""
        total: Any = None
        compilations = 0
        for model, normalization, variables in members:
            evaluate = make_evaluator(model, normalization, dataset, split, mesh, batch_size, protocol)
            scores = evaluate(variables)
            compilations += len(scores.shapes)
            total = scores.log_probs if total is None else log_add(total, scores.log_probs)
        ensemble = scores._replace(log_probs=total - np.float32(np.log(len(members))))
        figures: dict[str, Any] = dict(error_rates(ensemble))
        top5 = f"top-5 error {figures['top5_error']:.2f} %, " if "top5_error" in figures else ""
        summary = (
            f"top-1 error {figures['top1_error']:.2f} %, {top5}"
            f"loss {figures['loss']:.4f}, {figures['num_examples']} examples"
        )
        return Score(figures | {"compilations": compilations}, summary, ensemble)

    def write_scores(self, path: Path, details: Scores, dataset: Dataset, split: str) -> None:
        """A CSV file with a line for each image."""
        write_scores(path, details, dataset, split)

    def predict(
        self, member: Member, class_names: Sequence[str], paths: Sequence[Path], look: Look
    ) -> Iterator[Described]:
        """The best classes of files, of which all are resized to the same size."""
        model, normalization, variables = member
        for found in predict(model, variables, normalization, class_names, paths, look):
            lines = [
                f"{100 * probability:6.2f} %  {name}"
                for name, probability in zip(found.classes, found.probabilities, strict=True)
            ]
            yield Described(found.path, lines, partial(draw, found))


class Classification(ClassificationPart):
    """One class for each image.

    loss: "softmax" cross-entropy, or "bce", binary cross-entropies of each class (Wightman et al., arXiv 2110.00476,
        section 3). A key and not another task, since batches, metrics and evaluation are the same.
    label_smoothing: the part of the target that is spread evenly over all classes (Szegedy et al. 2016, section 7).
    target_threshold: of "bce": targets above it become 1 and the others 0, after smoothing; so mixed images have two
        classes. None: they stay.
    sum_classes: of "bce": whether the cross-entropies of the classes are summed, and not averaged, before the mean over
        the examples.
    """

    name: Literal["classification"] = "classification"
    loss: Loss = "softmax"
    label_smoothing: Fraction = 0.0
    target_threshold: Fraction | None = None
    sum_classes: bool = False

    @model_validator(mode="after")
    def _check_set_is_read(self) -> Self:
        if self.loss != "bce" and (self.target_threshold is not None or self.sum_classes):
            key = "sum_classes" if self.target_threshold is None else "target_threshold"
            raise ValueError(f"{key} is set but not read, because loss is {self.loss!r}; set loss to 'bce'")
        return self

    def make(
        self,
        model: Model,
        dataset: Dataset,
        normalization: Normalization,
        transforms: Transforms,
        mesh: Mesh,
        eval_batch_size: int,
        title: str = "",
    ) -> "ClassificationTask":
        """The task for a network on a data set, evaluated on its evaluation split. Compiles nothing yet."""
        return ClassificationTask(
            model,
            normalization,
            transforms,
            make_evaluator(model, normalization, dataset, dataset.evaluation_split, mesh, eval_batch_size),
            self.label_smoothing,
            title or f"{model.family} on {dataset.name}",
            self.loss,
            self.target_threshold,
            self.sum_classes,
        )

    def without_data(self, model: Model) -> "ClassificationTask":
        """The task with no data to train or evaluate on: enough for ``init``."""
        return ClassificationTask(model)


@dataclasses.dataclass(frozen=True)
class ClassificationTask:
    """A ``Task``. ``model`` gives logits (B, num_classes) for normalised images (B, H, W, C).

    Batches have "image", "label" (B,) int32 and maybe "target" (B, num_classes) float32, the probabilities of the
    classes, which then take the place of the labels in the loss. The metric "error" is the top-1 error by the labels.
    """

    model: Model
    normalization: Normalization | None = None
    transforms: Transforms = dataclasses.field(default_factory=Transforms)
    evaluator: Callable[[Variables], Scores] | None = None
    label_smoothing: float = 0.0
    title: str = ""
    loss_kind: Loss = "softmax"
    target_threshold: float | None = None
    sum_classes: bool = False

    metrics: ClassVar[tuple[str, ...]] = ("error",)
    percentages: ClassVar[frozenset[str]] = frozenset({"error"})
    best: ClassVar[str] = "top1_error"
    drawn: ClassVar[tuple[str, ...]] = ("error",)
    picture: ClassVar[str] = "errors.png"
    recorded: ClassVar[Mapping[str, str]] = MappingProxyType({"top1_error": "error", "loss": "loss"})

    def init(self, key: jax.Array, image_shape: tuple[int, ...]) -> Variables:
        variables = self.model.init(key, jnp.zeros((1, *image_shape), jnp.float32), train=False)
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}  # VGG has none.

    def trained(self, image_shape: tuple[int, ...]) -> None:
        return None

    def prepare(self, key: jax.Array, batch: Batch) -> Batch:
        assert self.normalization is not None
        return self.transforms.apply(key, batch, self.normalization, self.model.num_classes)

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        logits, updated = self.model.apply(
            variables, batch["image"], train=True, mutable=["batch_stats"], rngs=_streams(key)
        )
        error = jnp.mean(jnp.argmax(logits, axis=-1) != batch["label"])
        return self.criterion(logits, batch), ({"error": error}, self._moving(updated.get("batch_stats", {})))

    def criterion(self, logits: jax.Array, batch: Batch) -> jax.Array:
        """What is minimised, a scalar, of logits (B, num_classes); a subclass may have another."""
        if self.loss_kind == "softmax" and "target" not in batch and not self.label_smoothing:
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        targets = self.targets(logits, batch)
        if self.loss_kind == "softmax":
            return optax.softmax_cross_entropy(logits, targets).mean()
        if self.target_threshold is not None:
            targets = (targets > self.target_threshold).astype(logits.dtype)
        losses = optax.sigmoid_binary_cross_entropy(logits, targets)
        return losses.sum(axis=-1).mean() if self.sum_classes else losses.mean()

    def targets(self, logits: jax.Array, batch: Batch) -> jax.Array:
        """The probabilities of the classes (B, num_classes) that are to be learned, smoothed."""
        targets = batch["target"] if "target" in batch else jax.nn.one_hot(batch["label"], logits.shape[-1])
        return optax.smooth_labels(targets, self.label_smoothing) if self.label_smoothing else targets

    def statistics(self, variables: Variables, batch: Batch, key: jax.Array) -> Any:
        # The running statistics of such a network are those of the last batch, all of it: statistics of groups leave
        # out what lies between their means.
        model: Any = self.model  # With batch normalisation, or this would not be called: it has a field ``norm``.
        forgetful = model.clone(norm=partial(model.norm, momentum=0.0, group_size=None))
        _, updated = forgetful.apply(variables, batch["image"], train=True, mutable=["batch_stats"], rngs=_streams(key))
        return self._moving(updated["batch_stats"])

    def _moving(self, batch_stats: Any) -> Any:
        """Those that are not frozen."""
        return {module: leaves for module, leaves in batch_stats.items() if not self.model.keeps_statistics(module)}

    def evaluate(self, variables: Variables) -> dict[str, float]:
        assert self.evaluator is not None
        return error_rates(self.evaluator(variables))


def _for_grey(weights: Variables, model: Model) -> Variables:
    """With a stem that reads one channel; see ``starting``."""
    params = weights["params"]
    _, stem, _ = stem_kernel(model, [("params", module, "kernel") for module in params])
    kernel = params.get(stem, {}).get("kernel", np.zeros(0))
    if kernel.shape[2:3] != (3,):
        return weights
    return weights | {"params": params | {stem: {**params[stem], "kernel": kernel.sum(axis=2, keepdims=True)}}}


def _streams(key: jax.Array) -> dict[str, jax.Array]:
    """The random streams that a network draws from in training, by name; a new one changes none of the others."""
    return {"dropout": key, "drop_path": jax.random.fold_in(key, zlib.crc32(b"drop_path"))}
