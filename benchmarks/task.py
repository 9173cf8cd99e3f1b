"""What is timed. Imports no PyTorch, whose import would count as start-up time."""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from resnet_jax import recipes
from resnet_jax.models import create_model

LEARNING_RATE = 1e-3


class Task(NamedTuple):
    """What is timed: a network of the paper by name, narrowed where ``width`` is given."""

    model: str
    batch_size: int
    size: int  # Of the images, in pixels.
    dtype: str = "float32"
    width: int | None = None
    remat: bool = False
    scan_blocks: bool | None = None

    @property
    def imagenet(self) -> bool:
        return create_model(self.model).image_size == 224

    def config(self) -> ConfigDict:
        config = recipes.imagenet_baseline(self.model) if self.imagenet else recipes.cifar10_paper(self.model)
        config.batch_size = self.batch_size
        config.model.bn_group_size = None
        config.model.dtype = self.dtype
        config.model.width, config.model.remat = self.width, self.remat
        config.model.scan_blocks = self.scan_blocks
        config.label_smoothing = 0.0
        config.schedule.name, config.schedule.warmup_steps, config.schedule.warmup_error = "constant", 0, 0.0
        config.optimizer.learning_rate = LEARNING_RATE
        return config

    def batch(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        shape = (self.batch_size, self.size, self.size, 3)
        labels = rng.integers(0, 10, self.batch_size).astype(np.int32)
        return {"image": rng.normal(size=shape).astype(np.float32), "label": labels}
