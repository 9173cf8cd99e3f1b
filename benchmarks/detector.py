"""What is timed of a detector: torchvision's fasterrcnn_resnet50_fpn, ours and, in ``torch_detector``, theirs.

Both have random weights under the same rules, by which both do the same work: batch normalisation, which is frozen with
the stem and the first stage, halves what it is given, so that values stay small; and of the classes one is as likely as
the background everywhere, so that every proposal is one candidate for the last suppression. Imports no PyTorch.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import Run, timed
from resnet_jax import parallel
from resnet_jax.detection.faster_rcnn import FasterRCNN
from resnet_jax.detection.named import torchvision_fpn
from resnet_jax.detection.rpn import Proposals
from resnet_jax.detection.second_stage import box_losses, detect, sample_boxes
from resnet_jax.detection.targets import Targets
from resnet_jax.kernels import Kernels
from resnet_jax.models import create_model, variant
from resnet_jax.tasks.detection import Detection
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.optimizers.masked import apply_updates, only
from resnet_jax.train.state import TrainState, init_state
from resnet_jax.train.step import StepSettings, train_step

LEARNING_RATE = 1e-4
NORM_SCALE = 0.5
SCORE_BIASES = (0.0, 0.0, -10.0)  # Of the background, the first class, and all others.


class DetectorWorkload(NamedTuple):
    """A batch for the detector. Photographs are ``size`` (height, width) in the corner of a ``canvas`` of zeros.

    proposals: of each photograph, in training and inference. samples: regions of each that are trained on.
    channels, hidden, stages: others than the detector's, for toy runs: the pyramid's channels, the units of the head's
    layers, and the numbers of blocks.
    """

    batch_size: int
    size: tuple[int, int]
    canvas: tuple[int, int]
    proposals: int
    samples: int
    num_classes: int
    dtype: str = "float32"
    channels: int = 256
    hidden: int = 1024
    stages: tuple[int, ...] | None = None

    @property
    def title(self) -> str:
        height, width = self.size
        return f"batch {self.batch_size}, {height} x {width}, {self.proposals} proposals, {self.dtype}"

    @property
    def stage_sizes(self) -> tuple[int, ...]:
        return self.stages or variant("resnet50").fields["stage_sizes"]

    def batch(self) -> dict[str, np.ndarray]:
        """Normalised noise, with eight objects in each image."""
        rng, (height, width) = np.random.default_rng(0), self.size
        image = np.zeros((self.batch_size, *self.canvas, 3), np.float32)
        image[:, :height, :width] = rng.normal(size=(self.batch_size, height, width, 3))
        corner = rng.uniform(0, 0.6, (self.batch_size, 8, 2))
        sides = rng.uniform(0.1, 0.4, (self.batch_size, 8, 2))
        boxes = np.concatenate([corner, corner + sides], axis=-1) * [width, height, width, height]
        return {
            "image": image,
            "image_hw": np.full((self.batch_size, 2), self.size, np.int32),
            "boxes": boxes.astype(np.float32),
            "labels": rng.integers(0, self.num_classes, (self.batch_size, 8)).astype(np.int32),
            "valid": np.ones((self.batch_size, 8), bool),
        }

    def model(self, kernels: Kernels) -> FasterRCNN:
        """Our detector."""
        fields: dict[str, Any] = {"stage_sizes": self.stages} if self.stages else {}
        network: Any = create_model("resnet50", 0, stride_placement="v1.5", dtype=self.dtype, kernels=kernels, **fields)
        model = torchvision_fpn(network, self.num_classes)
        return model.clone(
            backbone=model.backbone.clone(channels=self.channels, hidden=self.hidden),
            rpn_channels=self.channels,
            rpn=model.rpn._replace(train_post_nms=self.proposals, test_post_nms=self.proposals),
            box=model.box._replace(samples=self.samples),
        )


def with_rules(variables: Any) -> Any:
    """Random variables by the rules of this module."""
    places = flax.traverse_util.flatten_dict(variables)

    def ruled(place: tuple[str, ...], leaf: jax.Array) -> jax.Array:
        if place[-1] == "scale":
            return jnp.full_like(leaf, NORM_SCALE)
        if place[1:] == ("box_score", "bias"):
            background, first, others = SCORE_BIASES
            return jnp.full_like(leaf, others).at[0].set(background).at[1].set(first)
        return leaf

    return flax.traverse_util.unflatten_dict({place: ruled(place, leaf) for place, leaf in places.items()})


class _Made(NamedTuple):
    """The detector with all that its sides need, on the device."""

    model: FasterRCNN
    state: TrainState
    batch: dict[str, jax.Array]
    step: Callable[[TrainState, Any], tuple[TrainState, Any]]
    update: Callable[[Any, TrainState], Any]
    trained: Any


@functools.lru_cache(maxsize=1)  # The sides of a comparison share it.
def _make(workload: DetectorWorkload, kernels: Kernels) -> _Made:
    mesh = parallel.data_mesh()
    model = workload.model(kernels)
    task, image_shape = Detection().without_data(model), (*workload.canvas, 3)
    trained = task.trained(image_shape)
    optimizer = only(SGD(momentum=0.9, weight_decay=1e-4).make(), trained)
    state = init_state(task, optimizer, 0, 0.0, 0.0, image_shape, mesh)
    ruled = with_rules({"params": state.params, "batch_stats": state.batch_stats})

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        return train_step(task, optimizer, lambda _: LEARNING_RATE, StepSettings(), state, batch)

    def update(grads: Any, state: TrainState) -> Any:
        updates, _ = optimizer.update(grads, state.opt_state, state.params, learning_rate=jnp.float32(LEARNING_RATE))
        return apply_updates(state.params, updates)

    batch = parallel.to_global(workload.batch(), parallel.sharded_batch(mesh))
    return _Made(model, dataclasses.replace(state, **ruled), batch, step, update, trained)


def training(workload: DetectorWorkload, kernels: Kernels) -> Run:
    """The trainer's own step, approximate joint training with SGD."""
    made = _make(workload, kernels)
    state = jax.tree.map(jnp.copy, made.state)  # It is donated.
    compiled = jax.jit(made.step, donate_argnums=0).lower(state, made.batch).compile()

    def run(num_steps: int) -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(num_steps):
            state, _ = compiled(state, made.batch)
        jax.block_until_ready(state)
        return num_steps * workload.batch_size / (time.perf_counter() - start)

    run(3)
    return run


def inference(workload: DetectorWorkload, kernels: Kernels) -> Run:
    """Detections from normalised images."""
    made = _make(workload, kernels)
    compiled = jax.jit(made.model.apply)
    inputs = made.state.variables, made.batch["image"], made.batch["image_hw"]
    return timed(lambda: compiled(*inputs), workload.batch_size, jax.block_until_ready)


def layers_inference(workload: DetectorWorkload, kernels: Kernels) -> Run:
    """All layers with weights: those of images on the batch, those of regions on given pooled ones."""
    made = _make(workload, kernels)
    pooled = _pooled(made.model, workload.batch_size * workload.proposals)
    compiled = jax.jit(partial(_layers, made.model))
    inputs = made.state.variables, made.batch["image"], pooled
    return timed(lambda: compiled(*inputs), workload.batch_size, jax.block_until_ready)


def layers_training(workload: DetectorWorkload, kernels: Kernels) -> Run:
    """The same forward and back: gradients of the trained parameters, and of the pooled regions."""
    made = _make(workload, kernels)
    pooled = _pooled(made.model, workload.batch_size * workload.samples)

    def loss(params: Any, pooled: jax.Array, statistics: Any, images: jax.Array) -> jax.Array:
        variables = {"params": _stopped(params, made.trained), "batch_stats": statistics}
        return _squares(_layers(made.model, variables, images, pooled))

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1)))
    inputs = made.state.params, pooled, made.state.batch_stats, made.batch["image"]
    return timed(lambda: compiled(*inputs), workload.batch_size, jax.block_until_ready)


def _layers(model: FasterRCNN, variables: Any, images: jax.Array, pooled: jax.Array) -> Any:
    def apply(model: Any) -> Any:
        maps = model.features(images)
        return model.rpn_outputs(maps), model.classify(model.backbone.head(pooled)[None])

    return model.apply(variables, method=apply)


def _pooled(model: Any, regions: int) -> jax.Array:
    """Random pooled regions (regions, 7, 7, C)."""
    size, channels = model.pooling.size, model.backbone.channels
    return jnp.asarray(np.random.default_rng(1).random((regions, size, size, channels)), model.backbone.dtype)


def _stopped(params: Any, trained: Any) -> Any:
    return jax.tree.map(lambda leaf, moves: leaf if moves else jax.lax.stop_gradient(leaf), params, trained)


def _squares(tree: Any) -> jax.Array:
    """A number in whose gradient every value counts."""
    return sum((jnp.mean(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)), jnp.float32(0))


# Of ours, the parts of which a step consists, each compiled by itself, on what the parts before it gave. All that
# differs from step to step is an argument, or XLA would compute with it once, in compiling.

_INFERENCE = ("backbone", "proposals", "RoI pooling", "head", "post-processing")
_TRAINING = ("backbone", "proposals and their losses", "RoI pooling", "samples, head and its losses", "update")

_Part = tuple[Callable[..., Any], tuple[Any, ...]]  # A function and its arguments.


def inference_parts(workload: DetectorWorkload, kernels: Kernels) -> dict[str, Callable[[], Run]]:
    """The parts of ``inference``."""

    def parts(made: _Made) -> tuple[_Part, ...]:
        model, variables, hw = made.model, made.state.variables, made.batch["image_hw"]
        maps, proposals = jax.jit(partial(_before_regions, model, False))(variables, made.batch)
        pooled = jax.jit(partial(_pool, model))(maps, proposals.boxes)
        predict = partial(_predict, model)
        predictions: Any = jax.jit(predict)(variables, pooled, proposals)
        propose = partial(model.apply, method=lambda model, maps, hw: model.propose(maps, workload.canvas, hw))
        return (
            (partial(model.apply, method="features"), (variables, made.batch["image"])),
            (propose, (variables, maps, hw)),
            (partial(_pool, model), (maps, proposals.boxes)),
            (predict, (variables, pooled, proposals)),
            (partial(detect, settings=model.box), (predictions, hw)),
        )

    return _parts(_INFERENCE, workload, kernels, parts)


def training_parts(workload: DetectorWorkload, kernels: Kernels) -> dict[str, Callable[[], Run]]:
    """The parts of ``training``, all but the update forward and back."""

    def parts(made: _Made) -> tuple[_Part, ...]:
        model, batch, key = made.model, made.batch, jax.random.key(0)
        params, statistics = made.state.params, made.state.batch_stats
        maps, proposals = jax.jit(partial(_before_regions, model, True))(made.state.variables, batch)
        sample = jax.jit(partial(sample_boxes, settings=model.box))(proposals, _targets(batch), key=key)
        pooled = jax.jit(partial(_pool, model))(maps, sample.boxes)

        def variables(params: Any, statistics: Any) -> Any:
            return {"params": _stopped(params, made.trained), "batch_stats": statistics}

        def backbone(params: Any, statistics: Any, images: jax.Array) -> Any:
            return _squares(model.apply(variables(params, statistics), images, True, method="features"))

        def propose(params: Any, maps: Any, statistics: Any, batch: Any, key: jax.Array) -> Any:
            def apply(model: Any) -> Any:
                losses = model.rpn_losses(maps, workload.canvas, batch["image_hw"], _targets(batch))
                return sum(losses.values()), model.propose(maps, workload.canvas, batch["image_hw"], train=True)

            return model.apply(variables(params, statistics), method=apply, rngs={"sample": key})

        def pool(maps: Any, boxes: jax.Array) -> Any:
            return _squares(_pool(model, maps, boxes))

        def head(params: Any, pooled: jax.Array, statistics: Any, proposals: Any, batch: Any, key: jax.Array) -> Any:
            drawn = sample_boxes(proposals, _targets(batch), model.box, key)
            logits, deltas = _classify(model, variables(params, statistics), pooled, True)
            return sum(box_losses(logits, deltas[:, :, -model.num_classes :], drawn, model.box.beta).values())

        return (
            (jax.grad(backbone), (params, statistics, batch["image"])),
            (jax.grad(propose, (0, 1), has_aux=True), (params, maps, statistics, batch, key)),
            (jax.grad(pool), (maps, sample.boxes)),
            (jax.grad(head, (0, 1)), (params, pooled, statistics, proposals, batch, key)),
            (made.update, (jax.tree.map(jnp.ones_like, params), made.state)),
        )

    return _parts(_TRAINING, workload, kernels, parts)


def _before_regions(model: FasterRCNN, train: bool, variables: Any, batch: Any) -> Any:
    """The maps and the proposals of a batch."""

    def apply(model: Any) -> Any:
        maps = model.features(batch["image"])
        return maps, model.propose(maps, batch["image"].shape[1:3], batch["image_hw"], train)

    return model.apply(variables, method=apply)


def _pool(model: FasterRCNN, maps: Any, boxes: jax.Array) -> jax.Array:
    levels = model.backbone.roi_levels
    return model.pooling(maps[:levels], model.backbone.strides[:levels], boxes)


def _classify(model: FasterRCNN, variables: Any, pooled: jax.Array, train: bool = False) -> Any:
    """Logits and deltas of pooled regions (B, R, P, P, C)."""

    def apply(model: Any) -> Any:
        features = model.backbone.head(pooled.reshape(-1, *pooled.shape[2:]), train)
        return model.classify(features.reshape(*pooled.shape[:2], -1))

    return model.apply(variables, method=apply)


def _predict(model: FasterRCNN, variables: Any, pooled: jax.Array, proposals: Proposals) -> Any:
    return model.predictions(proposals, *_classify(model, variables, pooled))


def _targets(batch: Any) -> Targets:
    return Targets(batch["boxes"], batch["labels"], batch["valid"])


def _parts(
    names: tuple[str, ...],
    workload: DetectorWorkload,
    kernels: Kernels,
    make: Callable[[_Made], tuple[_Part, ...]],
) -> dict[str, Callable[[], Run]]:
    """Sides of a comparison; what they are given is made once, with the first of them."""

    @functools.cache
    def made() -> dict[str, _Part]:
        return dict(zip(names, make(_make(workload, kernels)), strict=True))

    def side(name: str) -> Run:
        function, arguments = made()[name]
        compiled = jax.jit(function)
        return timed(lambda: compiled(*arguments), workload.batch_size, jax.block_until_ready)

    return {name: partial(side, name) for name in names}
