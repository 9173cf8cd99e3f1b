"""The keys of a detector's two stages, and of what lies between them."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from resnet_jax.detection.roi import Pooling
from resnet_jax.detection.rpn import RPNSettings
from resnet_jax.detection.second_stage import BoxSettings
from resnet_jax.parts import Count, NonNegativeFloat, Part, ascending

Unit = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]

_RPN, _BOX = RPNSettings(), BoxSettings()


class ProposalNetwork(Part):
    """The region proposal network. channels: of its 3x3 convolution; the rest is ``RPNSettings``'s, which says more."""

    channels: Count = 256
    positive: Unit = _RPN.positive
    negative: Unit = _RPN.negative
    samples: Count = _RPN.samples
    fraction: Unit = _RPN.fraction
    straddle: NonNegativeFloat | None = _RPN.straddle
    beta: NonNegativeFloat = _RPN.beta
    train_pre_nms: Count = _RPN.train_pre_nms
    train_post_nms: Count = _RPN.train_post_nms
    test_pre_nms: Count = _RPN.test_pre_nms
    test_post_nms: Count = _RPN.test_post_nms
    nms: Unit = _RPN.nms
    min_size: NonNegativeFloat = _RPN.min_size

    @field_validator("negative")
    @classmethod
    def _check_negative(cls, value: float, info: ValidationInfo) -> float:
        if value > info.data.get("positive", 1):
            raise ValueError(f"it must be at most rpn.positive, {info.data['positive']}")
        return value

    def settings(self) -> RPNSettings:
        return RPNSettings(**self.model_dump(exclude={"channels"}))


class BoxHead(Part):
    """The second stage; ``BoxSettings`` says what each key is."""

    positive: Unit = _BOX.positive
    negative: Annotated[tuple[Unit, Unit], AfterValidator(ascending)] = _BOX.negative
    samples: Count = _BOX.samples
    fraction: Unit = _BOX.fraction
    weights: tuple[Positive, Positive, Positive, Positive] = _BOX.weights
    beta: NonNegativeFloat = 1 / 9  # As torchvision's; the library's default is Fast R-CNN's 1.
    min_score: Unit = _BOX.min_score
    candidates: Count = _BOX.candidates
    nms: Unit = _BOX.nms
    vote: Unit | None = _BOX.vote
    detections: Count = _BOX.detections
    min_size: NonNegativeFloat = _BOX.min_size

    def settings(self) -> BoxSettings:
        return BoxSettings(**self.model_dump())


class RegionPooling(Part):
    """How regions become maps of ``size`` x ``size``: RoIAlign, or the paper's RoIPool ("pool"), which c4 can have."""

    op: Literal["align", "pool"] = "align"
    size: Count = 7
    sampling_ratio: Count = 2
    aligned: bool = False

    def make(self) -> Pooling:
        return Pooling(**self.model_dump())
