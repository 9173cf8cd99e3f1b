"""The part of a config that says which weights a run starts from. What reads them is ``experiment.initial``."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from resnet_jax.parts import Part


class NoWeights(Part):
    """A random start."""

    name: Literal["none"] = "none"


class Weights(Part):
    """Parameters and batch statistics from elsewhere, read once: a run that resumes does not need them any more.

    path: a file of PyTorch weights (.pth, .th, .pt, .safetensors), the workdir of a run, or a repository of timm on the
        Hugging Face Hub: timm/resnet50.a1_in1k.
    head: "new", whatever the number of classes, or "keep", for data with the classes that the weights were trained on.
    checkpoint: of a workdir; its moving average where it kept one.
    normalization: "weights", the one that they were trained with where it is known, as of a workdir and a repository;
        or "config", config.normalization. A file does not say it; then it is config.normalization in both cases.
    """

    name: Literal["weights"] = "weights"
    path: str = ""
    head: Literal["new", "keep"] = "new"
    checkpoint: Literal["latest", "best"] = "latest"
    normalization: Literal["weights", "config"] = "weights"


AnyInit: TypeAlias = Annotated[NoWeights | Weights, Field(discriminator="name")]
