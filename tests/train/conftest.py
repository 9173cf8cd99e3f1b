"""A tiny network with its task and data, and a folder of photographs."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest
from jax.sharding import Mesh

from resnet_jax import parallel
from resnet_jax.data.normalization import Normalization
from resnet_jax.data.resident import ResidentDataset
from resnet_jax.data.transforms import Flip, RandomCrop, Transforms
from resnet_jax.models.zoo import create_model
from resnet_jax.tasks.classification import ClassificationTask

CHANNEL = Normalization(np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32))
AUGMENTATION = Transforms(random_crop=RandomCrop(pad=1), flip=Flip(probability=0.5))


@pytest.fixture(scope="session")
def two_devices() -> Mesh:
    """Quicker to compile for than eight."""
    return parallel.data_mesh(jax.devices()[:2])


@pytest.fixture(scope="session")
def random_images() -> ResidentDataset:
    """48 images of noise, 8x8, in ten classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (48, 8, 8, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, 48).astype(np.int32)
    return ResidentDataset.from_arrays(images, labels, images[:4], labels[:4], [str(digit) for digit in range(10)])


@pytest.fixture(scope="session")
def tiny_task() -> Callable[..., ClassificationTask]:
    """The task of a network of two basic blocks, 4 and 8 filters wide, with padding, crops and flips."""

    def make(label_smoothing=0.0, transforms=AUGMENTATION, normalization=CHANNEL, **fields):
        model = create_model("resnet20", **{"width": 4, "stage_sizes": (1, 1), **fields})
        return ClassificationTask(model, normalization, transforms, None, label_smoothing)

    return make


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """ROOT/train with 20 and ROOT/val with 4 photographs of noise in each of the classes cat and dog."""
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 4)):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                noise = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
                size = tuple(rng.integers(40, 70, 2))
                PIL.Image.fromarray(noise).resize(size).save(folder / f"{number:02}.jpg")
    return root


@pytest.fixture
def collect_dropped_coroutines() -> Iterator[None]:
    """Inside the test that dropped them, where its filters of warnings hold."""
    yield
    gc.collect()
