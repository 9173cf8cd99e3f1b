"""Localisation: a box for the class that a photograph shows, by a per-class proposal network and R-CNN (appendix C)."""

import csv
import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from pydantic import Field, model_validator

from resnet_jax.data.decode.boxes import Look
from resnet_jax.data.normalization import Normalization
from resnet_jax.data.transforms import Transforms
from resnet_jax.detection import second_stage
from resnet_jax.detection.anchors import Anchors
from resnet_jax.detection.backbones import c4, forgetful, freezes, networks
from resnet_jax.detection.localiser import LOCALISATION_RPN, Localiser, RegionSettings, Stage, trained_part
from resnet_jax.detection.training import stop_frozen
from resnet_jax.errors import UserError
from resnet_jax.evaluation.detection.detector import on_canvas
from resnet_jax.evaluation.detection.localiser import Answers, Localised, locate, make_localiser, score_localiser
from resnet_jax.evaluation.detection.predict import detections_in
from resnet_jax.evaluation.detection.report import draw_detections
from resnet_jax.evaluation.records import read_best_classes
from resnet_jax.files import expanded, replace_atomically
from resnet_jax.models.model import Model
from resnet_jax.parts import Count, NonNegativeFloat, Part
from resnet_jax.tasks.detection_stages import Positive, ProposalNetwork, Unit
from resnet_jax.tasks.detection_start import starting_variables
from resnet_jax.tasks.task import Batch, Described, Member, Score, Variables

PROTOCOLS = ("single", "dense", "multi_scale")


class Regions(Part):
    """The R-CNN; ``detection.localiser.RegionSettings`` says what each key is."""

    size: Count = RegionSettings().size
    samples: Count = RegionSettings().samples
    positive: Unit = RegionSettings().positive
    weights: tuple[Positive, Positive, Positive, Positive] = RegionSettings().weights
    beta: NonNegativeFloat = RegionSettings().beta

    def settings(self) -> RegionSettings:
        return RegionSettings(**self.model_dump())


class Localisation(Part):
    """A box for each class that is named; config.model is the backbone, without its classifier and last stage.

    anchor_sizes: square roots of areas in pixels. anchor_ratios, anchor_style: as in ``detection.anchors.Anchors``.
    rpn: the proposal network, with a score and a box of each class.
    rcnn: whether there is an R-CNN beside it: a whole network of its own, with a score and a box of each class, on
        regions that are cut out and resized.
    regions: the R-CNN's settings.
    trains: "rpn", the proposal network; or "rcnn", on the proposals of that network as it was trained before.
    test_scales: shorter sides for the protocol "multi_scale".
    classes: a table of the best classes of each photograph, as eval.py --scores_csv writes it for a classifier: scoring
        then gives the errors under predicted classes, too.
    shown: the class whose box predict.py finds; its name, or one of its words.
    """

    name: Literal["localisation"] = "localisation"
    anchor_sizes: Annotated[tuple[Positive, ...], Field(min_length=1)] = (128.0, 256.0, 512.0)
    anchor_ratios: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.5, 1.0, 2.0)
    anchor_style: Literal["exact", "rounded", "legacy"] = "exact"
    rpn: ProposalNetwork = ProposalNetwork(channels=512, **LOCALISATION_RPN._asdict())
    rcnn: bool = False
    regions: Regions = Regions()
    trains: Stage = "rpn"
    test_scales: Annotated[tuple[Count, ...], Field(min_length=1)] = (224, 256, 384, 480, 640)
    classes: str | None = None
    shown: str | None = None

    data_kinds: ClassVar[tuple[str, ...]] = ("detection",)
    has_responses: ClassVar[bool] = False
    draws_scores: ClassVar[bool] = False
    any_size: ClassVar[bool] = True
    keys_of_network: ClassVar[tuple[str, ...]] = ("anchor", "rcnn", "regions.size", "regions.weights")

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
        if self.trains == "rcnn" and not self.rcnn:
            raise ValueError("trains is 'rcnn', but rcnn is False; set it")
        if self.rcnn and self.regions.samples > self.rpn.test_post_nms:
            raise ValueError(
                f"regions.samples {self.regions.samples} is above the proposals, rpn.test_post_nms "
                f"{self.rpn.test_post_nms}; lower it"
            )
        return self

    # Building.

    def network(self, create: Callable[[int], Model], num_classes: int) -> Localiser:
        """The localiser on the network that ``create`` makes for a number of classes. Raises UserError."""
        network: Any = create(0)
        for field in ("drop_path", "dropout"):
            if getattr(network, field, 0):
                raise UserError(f"config.model.{field} is set, but a localiser's backbone drops nothing; remove it")
        for key in ("train_pre_nms", "train_post_nms"):
            if getattr(self.rpn, key) != getattr(LOCALISATION_RPN, key):
                raise UserError(
                    f"config.task.rpn.{key} is set, but a localiser makes as many proposals in training as in tests; "
                    f"set config.task.rpn.{key.replace('train', 'test')}"
                )
        sizes, ratios = tuple(map(float, self.anchor_sizes)), tuple(map(float, self.anchor_ratios))
        return Localiser(
            c4(network),
            num_classes,
            Anchors((sizes,), ratios, self.anchor_style),
            rpn_channels=self.rpn.channels,
            rpn=self.rpn.settings(),
            # Of another module: the same one twice would have one set of parameters.
            backbone=c4(create(0)) if self.rcnn else None,
            regions=self.regions.settings(),
        )

    def make(
        self,
        model: Localiser,
        dataset: Any,
        normalization: Normalization,
        transforms: Transforms,
        mesh: Mesh,
        eval_batch_size: int,
        title: str = "",
    ) -> "LocalisationTask":
        """The task for a localiser on a ``DetectionDataset``, evaluated on its evaluation split. Raises UserError.

        Its proposal network is evaluated on central crops, and its R-CNN on whole photographs.
        """
        if transforms != Transforms():
            raise UserError("config.transforms are for classification; photographs are mirrored by config.data.flip")
        if dataset.settings.keep_empty:
            raise UserError(
                "config.data.keep_empty is set, but a photograph without objects has no class to localise; remove it"
            )
        protocol = "single" if self.trains == "rpn" else "dense"
        split = dataset.evaluation_split
        evaluate = self._evaluator([model], [normalization], dataset, split, mesh, eval_batch_size, protocol)
        return LocalisationTask(
            model,
            normalization,
            lambda variables: score_localiser(partial(evaluate, [variables]), dataset, split),
            title or f"localiser on {dataset.name}",
            self.trains,
        )

    def without_data(self, model: Localiser) -> "LocalisationTask":
        """The task with no data to train or evaluate on: enough for ``init``."""
        return LocalisationTask(model, trains=self.trains)

    def networks(self, model: Localiser) -> dict[tuple[str, ...], Model]:
        """Those of its backbones."""
        return networks(model)

    def updates_statistics(self, model: Localiser) -> bool:
        """Whether training changes batch statistics."""
        return model.rpn_backbone.network.has_batch_norm

    def needs_weights(self, model: Localiser) -> bool:
        """Whether a part is frozen, or another's proposals are trained on, which would be random."""
        return freezes(model) or self.trains == "rcnn"

    def starting(
        self, model: Localiser, weights: Variables, keep_head: bool, image_shape: tuple[int, int, int]
    ) -> Variables:
        """The weights of a classification network in both networks, or those of a localiser. Raises UserError.

        Of a localiser the head is the two last layers of its R-CNN.
        """
        template = jax.eval_shape(lambda: self.without_data(model).init(jax.random.key(0), image_shape))
        return starting_variables(template, weights, keep_head, shared=False)

    def load_torch(
        self, name: str, path: Path, model: Localiser, overrides: Mapping[str, Any], channels: int = 3
    ) -> Variables:
        """Raises UserError: no localiser of PyTorch's is known."""
        raise UserError(
            f"{path} cannot be a localiser's weights; score a --workdir, or start a run from them with config.init.path"
        )

    def save_torch(self, path: Path, model: Localiser, variables: Mapping[str, Any]) -> None:
        """Raises UserError: no localiser of PyTorch's is known."""
        raise UserError("a localiser cannot be written as PyTorch weights; keep its workdir")

    # Scoring and predicting.

    def score(
        self,
        members: Sequence[Member],
        dataset: Any,
        split: str,
        mesh: Mesh,
        batch_size: int,
        protocol: str = "single",
    ) -> Score:
        """The errors of an ensemble, by default of one, on a split of a ``DetectionDataset``.

        The protocol is one of ``PROTOCOLS``. The surest box of all members and scales is the answer.
        """
        models, normalizations, variables = zip(*members, strict=True)
        evaluate = self._evaluator(models, normalizations, dataset, split, mesh, batch_size, protocol)
        predicted = None if self.classes is None else _predicted(expanded(self.classes), dataset, split)
        found = score_localiser(partial(evaluate, variables), dataset, split, predicted)
        figures = {"num_examples": len(found.wrong), **found.figures}
        said = ", ".join(f"{name.replace('_', ' ')} {value:.2f} %" for name, value in found.figures.items())
        compilations = {"compilations": len(members) * len(found.answers.shapes)}
        return Score(figures | compilations, f"{said}, {len(found.wrong)} examples", found)

    def write_scores(self, path: Path, details: Localised, dataset: Any, split: str) -> None:
        """A CSV file with a line for each photograph: the box of its own class, its probability, and if it is wrong."""
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["index", "name", "class", "wrong", "probability", "x1", "y1", "x2", "y2"])
        answers = details.answers
        for index, wrong in details.wrong.items():
            probability = 1 / (1 + np.exp(-answers.scores[index, 0].astype(np.float64)))
            row = [index, dataset.example_name(split, index), dataset.class_names[answers.labels[index, 0]], int(wrong)]
            writer.writerow([*row, f"{probability:.6g}", *(f"{side:.2f}" for side in answers.boxes[index, 0])])
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_atomically(path) as file:
            file.write(text.getvalue().encode(errors="surrogateescape"))

    def predict(
        self, member: Member, class_names: Sequence[str], paths: Sequence[Path], look: Look
    ) -> Iterator[Described]:
        """The box of the class ``shown`` in files, which are seen whole.

        A file that cannot be decoded is named on stderr and skipped. Raises UserError if none can, or for no class.
        """
        label = _label(self.shown, class_names)
        model, normalize, variables = member

        def find(variables: Any, batch: dict[str, jax.Array]) -> second_stage.Detections:
            labels = jnp.full((len(batch["image"]), 1), label, jnp.int32)
            found = locate(model, normalize, variables, batch, labels, self.trains)
            none = jnp.zeros(len(labels), jnp.int32)
            return second_stage.Detections(
                found.boxes, jax.nn.sigmoid(found.scores), labels, jnp.isfinite(found.scores), none
            )

        stride = max(model.rpn_backbone.strides)
        for path, found in detections_in(find, variables, stride, paths, look):
            lines = [
                f"{100 * score:6.2f} %  {class_names[label]}  ({', '.join(f'{side:.0f}' for side in box)})"
                for score, box in zip(found.scores, found.boxes, strict=True)
            ]
            yield Described(path, lines or ["nothing"], partial(draw_detections, path, found, class_names))

    def _evaluator(
        self,
        models: Sequence[Localiser],
        normalizations: Sequence[Normalization],
        dataset: Any,
        split: str,
        mesh: Mesh,
        batch_size: int,
        protocol: str,
    ) -> Callable[[Sequence[Variables], np.ndarray], Answers]:
        scales = {
            "single": lambda: [[dataset.single_view(split)]],
            "dense": lambda: [dataset.whole_views(split)],
            "multi_scale": lambda: [dataset.whole_views(split, scale) for scale in self.test_scales],
        }
        if protocol not in scales:
            raise UserError(f"a localiser has no protocol {protocol!r}; use {', '.join(PROTOCOLS)}")
        return make_localiser(models, normalizations, dataset, split, mesh, batch_size, self.trains, scales[protocol]())


def _predicted(path: Path, dataset: Any, split: str) -> np.ndarray:
    """(N, P) the best classes of a split's photographs; 0 for those that cannot be decoded, which are not counted."""
    readable = np.flatnonzero(dataset.photographs(split).sizes[:, 0])
    names = [dataset.example_name(split, int(index)) for index in readable]
    best = read_best_classes(path, dataset.class_names, names)
    labels = np.zeros((dataset.count(split), best.shape[1]), np.int32)
    labels[readable] = best
    return labels


def _label(shown: str | None, class_names: Sequence[str]) -> int:
    """The class that is called so, or so among other names."""
    if shown is None:
        raise UserError("a localiser finds the box of a class that is named; give --config and --config.task.shown")
    found = [label for label, name in enumerate(class_names) if shown == name]
    found = found or [label for label, name in enumerate(class_names) if shown in name.split(", ")]
    if len(found) != 1:
        raise UserError(
            f"config.task.shown is {shown!r}, the name of {len(found) or 'none'} of the {len(class_names)} classes; "
            f"give one, such as {class_names[0]!r}"
        )
    return found[0]


@dataclasses.dataclass(frozen=True)
class LocalisationTask:
    """A ``Task``. Batches are those of ``DetectionDataset.training_batches``. Metrics are the two losses.

    A photograph's class is that of its first object, as in ``own_classes``; its objects of other classes do not count.
    Where none of it is in the crop, all of that is background.
    """

    model: Localiser
    normalization: Normalization | None = None
    evaluator: Callable[[Variables], Localised] | None = None
    title: str = ""
    trains: Stage = "rpn"

    percentages: ClassVar[frozenset[str]] = frozenset()
    best: ClassVar[str] = "given_class_error"
    drawn: ClassVar[tuple[str, ...]] = ("given_class_error",)
    picture: ClassVar[str] = "errors.png"
    recorded: ClassVar[Mapping[str, str]] = MappingProxyType({"given_class_error": "given_class_error"})

    @property
    def metrics(self) -> tuple[str, ...]:
        return {"rpn": ("objectness", "rpn_box"), "rcnn": ("classifier", "box")}[self.trains]

    def init(self, key: jax.Array, image_shape: tuple[int, ...]) -> Variables:
        images, labels = jnp.zeros((1, *image_shape), jnp.float32), jnp.zeros((1, 1), jnp.int32)
        variables: Any = self.model.init(key, images, labels, jnp.zeros((1, 1, 1, 4)), method="outputs")
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}  # VGG has none.

    def trained(self, image_shape: tuple[int, ...]) -> Any:
        shapes = jax.eval_shape(partial(self.init, image_shape=image_shape), jax.random.key(0))
        mask = trained_part(self.model, shapes, self.trains)
        return None if all(jax.tree.leaves(mask)) else mask

    def prepare(self, key: jax.Array, batch: Batch) -> Batch:
        assert self.normalization is not None
        label = batch["labels"][:, 0]  # Crowds come last.
        valid = batch["valid"] & ~batch["crowd"] & (batch["labels"] == label[:, None])
        image = on_canvas(self.normalization, batch["image"], batch["image_hw"])
        return {"image": image, "image_hw": batch["image_hw"], "label": label, "boxes": batch["boxes"], "valid": valid}

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        losses, batch_stats = self._losses(self.model, variables, batch, key)
        return sum(losses.values(), jnp.float32(0)), (losses, batch_stats)

    def statistics(self, variables: Variables, batch: Batch, key: jax.Array) -> Any:
        # As in classification; those of the R-CNN are of the regions that are drawn.
        return self._losses(forgetful(self.model), variables, batch, key)[1]

    def evaluate(self, variables: Variables) -> dict[str, float]:
        assert self.evaluator is not None
        return self.evaluator(variables).figures

    def _losses(self, model: Localiser, variables: Variables, batch: Batch, key: jax.Array) -> Any:
        sample, dropout = jax.random.split(key)
        losses, updated = model.apply(
            stop_frozen(variables, trained_part(model, variables, self.trains)),
            batch["image"],
            batch["image_hw"],
            batch["label"],
            batch["boxes"],
            batch["valid"],
            self.trains,
            method="losses",
            mutable=["batch_stats"],
            rngs={"sample": sample, "dropout": dropout},
        )
        return losses, updated.get("batch_stats", variables.get("batch_stats", {}))
