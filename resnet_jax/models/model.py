"""What the rest of the project asks of a network, whatever its family."""

from typing import Any, ClassVar, Protocol

from resnet_jax.errors import UserError
from resnet_jax.kernels import Kernels


class Model(Protocol):
    """A linen module of normalised images (N, H, W, C) to logits (N, num_classes), called with ``train=False``.

    In training it may draw from the rngs "dropout" and "drop_path". What ``evaluation.dense`` asks of its module
    classes is in ``layers``.
    """

    family: ClassVar[str]

    @property
    def num_classes(self) -> int: ...

    @property
    def kernels(self) -> Kernels: ...

    @property
    def frozen_stages(self) -> tuple[str, ...]:
        """See ``frozen``."""

    @property
    def image_size(self) -> int:
        """Height and width of the images that it was made for."""

    @property
    def has_batch_norm(self) -> bool:
        """Whether there are "batch_stats", and a field ``norm`` that makes its batch normalisations."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Of its feature maps, the first one's first: how many pixels of the image one of theirs spans."""

    @property
    def stage_names(self) -> tuple[str, ...]:
        """What it consists of, from the images on: "stem", "stage1", ..., "head"."""

    def stage_of(self, module: str) -> str:
        """The stage that a top-level module of its variables belongs to, in either layout."""

    def head_distances(self, module: str) -> tuple[int, ...]:
        """How many blocks such a module is away from the head, which is at 0; of stacked blocks one for each."""

    def frozen(self, stages: tuple[str, ...], norms: bool) -> "Model":
        """The same network of which these stages are not trained.

        Their batch normalisations, or with ``norms`` all, use their running averages in training and keep them, and no
        gradient reaches stages that only frozen ones come before. Raises UserError for stages that it does not have.
        """

    def keeps_statistics(self, module: str) -> bool:
        """Whether the batch statistics of a top-level module stay as they are in training."""

    def unrolled(self) -> "Model":
        """The same network in the layout of variables that has an entry for each block."""

    def scanned(self) -> "Model":
        """The same network in the layout that is quickest to trace; it may be the same."""

    def response_layers(self) -> dict[tuple[str, ...], str]:
        """The path of each batch normalisation of ``unrolled`` after a 3x3 convolution, with that layer's name."""

    def init(self, *args: Any, **kwargs: Any) -> Any: ...

    def apply(self, *args: Any, **kwargs: Any) -> Any: ...

    def clone(self, **updates: Any) -> Any: ...


def check_frozen(model: Model, stages: Any) -> tuple[str, ...]:
    """The stages as a tuple. Raises UserError unless they are some of the model's ``stage_names``."""
    names = model.stage_names
    if not isinstance(stages, (tuple, list)) or not all(stage in names for stage in stages):
        raise UserError(f"frozen stages are {stages!r}; they must be a tuple of some of {', '.join(names)}")
    return tuple(stages)
