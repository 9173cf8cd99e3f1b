"""What is timed. Imports no PyTorch, whose import would count as start-up time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from resnet_jax.kernels import Kernels
from resnet_jax.models import Variant, create_model, variant
from resnet_jax.tasks.classification import Classification
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.state import TrainState, init_state
from resnet_jax.train.step import StepSettings, train_step

LEARNING_RATE = 1e-3


class Workload(NamedTuple):
    """A network of the paper by name, narrowed where ``width`` is given, and the batches it is given.

    Bottleneck networks are v1.5, as PyTorch's are.
    """

    model: str
    batch_size: int
    size: int  # Of the images, in pixels.
    dtype: str = "float32"
    width: int | None = None
    remat: bool | None = None
    scan_blocks: bool | None = None
    stages: tuple[int, ...] | None = None  # Other numbers of blocks than the network's own.

    @property
    def variant(self) -> Variant:
        return variant(self.model)

    @property
    def imagenet(self) -> bool:
        return self.variant.image_size == 224

    @property
    def stage_sizes(self) -> tuple[int, ...]:
        return self.stages or self.variant.fields["stage_sizes"]

    @property
    def channels(self) -> int:
        """Of the first stage."""
        return self.width or self.variant.fields["width"]

    @property
    def num_classes(self) -> int:
        return self.variant.fields["num_classes"]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.size, self.size, 3

    def network(self, kernels: Kernels) -> Any:
        """Our network."""
        given: dict[str, Any] = {
            "dtype": self.dtype,
            "width": self.width,
            "stage_sizes": self.stages,
            "remat": self.remat,
            "scan_blocks": self.scan_blocks,
        }
        overrides = {field: value for field, value in given.items() if value is not None}
        if "stride_placement" in self.variant.own_fields:
            overrides["stride_placement"] = "v1.5"
        return create_model(self.model, kernels=kernels, **overrides)

    def batch(self) -> dict[str, np.ndarray]:
        """Random normalised images and labels."""
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 10, self.batch_size).astype(np.int32)
        return {"image": rng.normal(size=(self.batch_size, *self.image_shape)).astype(np.float32), "label": labels}


class Training(NamedTuple):
    """Our training step of a workload: ``step(state, batch)`` gives (state, metrics), from ``new_state()`` on."""

    step: Callable[[TrainState, Any], tuple[TrainState, Any]]
    new_state: Callable[[], TrainState]


def training(workload: Workload, kernels: Kernels, mesh: Mesh) -> Training:
    """The trainer's own step with SGD at a constant small rate. Nothing is compiled yet."""
    task = Classification().without_data(workload.network(kernels))
    optimizer = SGD(momentum=0.9, weight_decay=1e-4).make()

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        return train_step(task, optimizer, lambda _: LEARNING_RATE, StepSettings(), state, batch)

    def new_state() -> TrainState:
        return init_state(task, optimizer, 0, 0.0, 0.0, workload.image_shape, mesh)

    return Training(step, new_state)
