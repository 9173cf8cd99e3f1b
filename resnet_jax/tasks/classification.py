"""Classification: cross-entropy with one label, or soft targets, for each image."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from resnet_jax.data.dataset import Dataset
from resnet_jax.data.normalization import Normalization
from resnet_jax.data.transforms import Transforms
from resnet_jax.evaluation.classify import Scores, error_rates, make_evaluator
from resnet_jax.models.model import Model
from resnet_jax.parts import Fraction, Part
from resnet_jax.tasks.task import Batch, Variables


class Classification(Part):
    """One class for each image.

    label_smoothing: the part of the target that is spread evenly over all classes (Szegedy et al. 2016, section 7).
    """

    name: Literal["classification"] = "classification"
    label_smoothing: Fraction = 0.0

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

    metrics: ClassVar[tuple[str, ...]] = ("error",)
    percentages: ClassVar[frozenset[str]] = frozenset({"error"})
    best: ClassVar[str] = "top1_error"
    recorded: ClassVar[Mapping[str, str]] = MappingProxyType({"top1_error": "error", "loss": "loss"})

    def init(self, key: jax.Array, image_shape: tuple[int, ...]) -> Variables:
        variables = self.model.init(key, jnp.zeros((1, *image_shape), jnp.float32), train=False)
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}  # VGG has none.

    def prepare(self, key: jax.Array, batch: Batch) -> Batch:
        assert self.normalization is not None
        return self.transforms.apply(key, batch, self.normalization, self.model.num_classes)

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        logits, updated = self.model.apply(
            variables, batch["image"], train=True, mutable=["batch_stats"], rngs=_streams(key)
        )
        if "target" in batch or self.label_smoothing:
            targets = batch["target"] if "target" in batch else jax.nn.one_hot(batch["label"], logits.shape[-1])
            if self.label_smoothing:
                targets = optax.smooth_labels(targets, self.label_smoothing)
            loss = optax.softmax_cross_entropy(logits, targets).mean()
        else:
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        error = jnp.mean(jnp.argmax(logits, axis=-1) != batch["label"])
        return loss, ({"error": error}, self._moving(updated.get("batch_stats", {})))

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


def _streams(key: jax.Array) -> dict[str, jax.Array]:
    """The random streams that a network draws from in training, by name; a new one changes none of the others."""
    return {"dropout": key, "drop_path": jax.random.fold_in(key, zlib.crc32(b"drop_path"))}
