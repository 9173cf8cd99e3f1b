"""What networks are trained for. A new task is a file of its own here and a member of ``AnyTask``."""

from typing import Annotated, TypeAlias

from pydantic import Field

from resnet_jax.tasks.classification import Classification, ClassificationTask
from resnet_jax.tasks.detection import Detection, DetectionTask
from resnet_jax.tasks.localisation import Localisation, LocalisationTask
from resnet_jax.tasks.task import Task

AnyTask: TypeAlias = Annotated[Classification | Detection | Localisation, Field(discriminator="name")]

__all__ = [
    "AnyTask",
    "Classification",
    "ClassificationTask",
    "Detection",
    "DetectionTask",
    "Localisation",
    "LocalisationTask",
    "Task",
]
