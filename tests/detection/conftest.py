import json
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "torchvision_fasterrcnn_resnet50_fpn.npz"


class Golden(NamedTuple):
    """Outputs of torchvision 0.28's fasterrcnn_resnet50_fpn, and the state dict that gave them."""

    arrays: dict
    state_dict: dict

    def __getitem__(self, name):
        return self.arrays[name]


@pytest.fixture(scope="session")
def golden() -> Golden:
    with np.load(GOLDEN) as file:
        arrays = dict(file)
    shapes = json.loads(str(arrays["shapes"]))
    return Golden(arrays, {key: draw(key, shape) for key, shape in shapes.items()})


def draw(key, shape):
    """The weights of that run, which follow from each tensor's name and shape."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return np.zeros((), np.int64)
    if len(shape) >= 2:
        value = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    elif key.endswith("running_var"):
        value = rng.uniform(0.5, 1.5, shape)
    elif key.endswith("weight"):
        value = rng.uniform(0.3, 0.9, shape)
    else:
        value = rng.normal(0, 0.1, shape)
    value = value.astype(np.float32)
    small = key.startswith(("rpn.head.cls", "rpn.head.bbox", "roi_heads.box_predictor"))
    return (value * 0.05).astype(np.float32) if small else value


@pytest.fixture
def random_boxes():
    """``(rng, count, side=100) -> boxes`` (count, 4), many of which overlap."""

    def make(rng, count, side=100):
        centres = rng.uniform(0, side, (max(1, count // 6), 2))[rng.integers(max(1, count // 6), size=count)]
        centres = centres + rng.normal(0, side / 25, (count, 2))
        sides = rng.uniform(side / 20, side / 3, (count, 2))
        return np.concatenate([centres - sides / 2, centres + sides / 2], axis=1).astype(np.float32)

    return make
