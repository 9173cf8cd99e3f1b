"""What networks are trained for. A new task is a file of its own here and a member of ``AnyTask``.

With two members or more the table is ``Annotated[Classification | Other, Field(discriminator="name")]``.
"""

from typing import TypeAlias

from resnet_jax.tasks.classification import Classification, ClassificationTask
from resnet_jax.tasks.task import Task

AnyTask: TypeAlias = Classification

__all__ = ["AnyTask", "Classification", "ClassificationTask", "Task"]
