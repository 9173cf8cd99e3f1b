"""What each transform costs a batch, as a share of a training step of ResNet-50.

    python -m benchmarks.run --suite augmentation [--out FILE] [--smoke]

The same command on a CPU and on a GPU. Each transform is compiled alone, with the normalisation, on a batch of random
uint8 images on the device; so is the step, without any. Inside of a training step some of it overlaps with other work.
"""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from benchmarks.timing import Run, timed
from benchmarks.workload import Workload
from resnet_jax.data.normalization import IMAGENET_STATISTICS, Normalization
from resnet_jax.data.transforms import (
    ColorJitter,
    Cutout,
    Flip,
    Mixing,
    PcaColor,
    RandAugment,
    RandomCrop,
    RandomErasing,
    Transforms,
    TrivialAugment,
)

STEP = "training step"
TRANSFORMS = {
    "normalisation alone": Transforms(),
    "flip": Transforms(flip=Flip(probability=0.5)),
    "random_crop": Transforms(random_crop=RandomCrop(pad=4)),
    "pca_color": Transforms(pca_color=PcaColor(std=0.1)),
    "color_jitter": Transforms(color_jitter=ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)),
    "rand_augment, 2 layers, nearest": Transforms(rand_augment=RandAugment(layers=2)),
    "rand_augment, 2 layers, bilinear": Transforms(rand_augment=RandAugment(layers=2, interpolation="bilinear")),
    "trivial_augment, nearest": Transforms(trivial_augment=TrivialAugment(probability=1.0)),
    "trivial_augment, bilinear": Transforms(trivial_augment=TrivialAugment(probability=1.0, interpolation="bilinear")),
    "cutout": Transforms(cutout=Cutout(size=16)),
    "random_erasing": Transforms(random_erasing=RandomErasing(probability=0.25, fill="pixel")),
    "mixup": Transforms(mixing=Mixing(mixup_alpha=0.2)),
    "mixup or cutmix": Transforms(mixing=Mixing(mixup_alpha=0.2, cutmix_alpha=1.0)),
}


def transforming(workload: Workload, transforms: Transforms) -> Run:
    """Batches prepared a second, as images/s."""
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (workload.batch_size, *workload.image_shape), dtype=np.uint8),
        "label": rng.integers(0, 10, workload.batch_size).astype(np.int32),
    }
    mean, std = (np.array(values, np.float32) for values in IMAGENET_STATISTICS)
    apply = partial(transforms.apply, normalization=Normalization(mean, std), num_classes=workload.num_classes)
    compiled, placed, key = jax.jit(apply), jax.device_put(batch), jax.random.key(0)
    return timed(lambda: compiled(key, placed), workload.batch_size, jax.block_until_ready)


def sides(workload: Workload, step: Callable[[], Run]) -> dict[str, Callable[[], Run]]:
    """The training step, and each transform."""
    found = {name: partial(transforming, workload, transforms) for name, transforms in TRANSFORMS.items()}
    return {STEP: step, **found}
