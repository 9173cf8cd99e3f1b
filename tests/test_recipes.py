"""The recipes that came after the paper: what they make, against their sources' numbers and formulas written out."""

import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import build
from resnet_jax.config import load_config
from resnet_jax.data.normalization import Normalization
from resnet_jax.data.transforms import Transforms

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
IMAGENET, CIFAR = 1_281_167, 50_000
PLAIN = Normalization(np.zeros(3, np.float32), np.ones(3, np.float32))


def load(name):
    return load_config(str(CONFIGS / name))


def rates(name, num_train, steps):
    config = load(name)
    intervals = build.intervals(config, num_train)
    schedule = build.make_schedule(config, intervals)
    return [float(schedule(jnp.int32(step))) for step in steps]


def decaying(name):
    """Which kinds of parameters of a network decay."""
    optimizer = load(name).optimizer
    params = {
        "stem_bn": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
        "stage1_block1": {
            "conv1": {"kernel": jnp.ones((1, 1, 2, 2))},
            "bn1": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
        },
        "head": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    }
    found = jax.tree_util.tree_leaves_with_path(optimizer.decays(params))
    return {".".join(part.key for part in path[-2:]) for path, decays in found if decays}


KERNELS = {"conv1.kernel", "head.kernel"}


def targets_of(config, seed=0, size=8):
    """Images and targets of a batch of eight after the recipe's cutout and mixing; image i is of class i."""
    transforms = Transforms(cutout=config.transforms.cutout, mixing=config.transforms.mixing)
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (8, size, size, 3), dtype=np.uint8), "label": np.arange(8)}
    apply = jax.jit(partial(transforms.apply, normalization=PLAIN, num_classes=1000))
    return apply(jax.random.key(seed), batch)


# "ResNet strikes back", arXiv 2110.00476, Table 2: epochs, rate, decay, smoothing, stochastic depth, repeated
# augmentation, magnitude of RandAugment, mixup, training resolution.
STRIKES_BACK = {
    "a1": (600, 5e-3, 0.01, 0.1, 0.05, True, 7, 0.2, 224),
    "a2": (300, 5e-3, 0.02, 0.0, 0.05, True, 7, 0.1, 224),
    "a3": (100, 8e-3, 0.02, 0.0, 0.0, False, 6, 0.1, 160),
}


@pytest.mark.parametrize("member", STRIKES_BACK)
def test_resnet_strikes_back(member):
    name = f"resnet_strikes_back.py:{member}"
    epochs, rate, decay, smoothing, drop_path, repeated, magnitude, mixup, resolution = STRIKES_BACK[member]
    config, epoch = load(name), IMAGENET // 2048
    assert build.intervals(config, IMAGENET).steps == epochs * epoch
    steps = [0, epoch, 5 * epoch, 50 * epoch, epochs * epoch - 1]
    expected = [
        rate * step / (5 * epoch)
        if step < 5 * epoch
        else rate / 2 * (1 + math.cos(math.pi * (step - 5 * epoch) / ((epochs - 5) * epoch)))
        for step in steps
    ]
    np.testing.assert_allclose(rates(name, IMAGENET, steps), expected, rtol=1e-4, atol=1e-9)
    assert (config.optimizer.name, config.optimizer.weight_decay, config.optimizer.clip_norm) == ("lamb", decay, 1)
    assert decaying(name) == KERNELS
    assert (config.model.drop_path or 0.0) == drop_path
    assert config.data.repeats == (3 if repeated else 1)
    assert (config.data.largest_crop, config.data.crop_size) == (resolution, 224)
    assert (config.data.eval_shorter_side, config.data.interpolation) == (math.floor(224 / 0.95), "bicubic")
    assert (config.task.loss, config.task.label_smoothing, config.task.target_threshold) == ("bce", smoothing, 0.2)
    transforms = config.transforms
    assert (transforms.rand_augment.operations, transforms.rand_augment.layers) == ("timm", 2)
    assert (transforms.rand_augment.magnitude, transforms.rand_augment.magnitude_std) == (magnitude, 0.5)
    assert (transforms.rand_augment.bins, transforms.rand_augment.probability) == (11, 0.5)
    mixing = transforms.mixing
    assert (mixing.mixup_alpha, mixing.cutmix_alpha, mixing.switch_probability) == (mixup, 1.0, 0.5)
    assert mixing.draw == config.model.bn_group_size == 512  # What a GPU sees.
    assert (transforms.flip.probability, transforms.random_erasing.on, transforms.color_jitter.on) == (
        0.5,
        False,
        False,
    )
    assert (config.ema_decay, config.data.crop.area) == (0, (0.08, 1.0))


@pytest.mark.extensive
def test_targets_of_strikes_back_are_the_classes_of_both_mixed_images():
    config = load("resnet_strikes_back.py:a2")
    seen = set()
    for seed in range(6):
        target = np.asarray(targets_of(config, seed)["target"])
        share = target[np.arange(8), np.arange(8)]
        np.testing.assert_allclose(target[np.arange(8), (np.arange(8) - 1) % 8], 1 - share, atol=1e-6)
        logits = np.random.default_rng(seed).normal(size=target.shape)
        hard = (target > 0.2).astype(float)  # By timm's rule; of one image or of both.
        seen.add(int(hard.sum(axis=1)[0]))
        expected = np.mean(np.log1p(np.exp(logits)) - hard * logits)
        task = config.task.without_data(None)
        task = type(task)(None, loss_kind=config.task.loss, target_threshold=config.task.target_threshold)
        np.testing.assert_allclose(
            task.criterion(jnp.asarray(logits), {"target": jnp.asarray(target)}), expected, rtol=1e-5
        )
    assert seen == {1, 2}


def test_torchvision_v2():
    """The command in torchvision's issue 3995, on 8 GPUs of 128 images each, and the defaults of its script."""
    name, epoch = "torchvision_v2.py", IMAGENET // 1024
    config = load(name)
    assert build.intervals(config, IMAGENET).steps == 600 * epoch
    steps = [0, 2 * epoch, 5 * epoch, 300 * epoch, 600 * epoch - 1]
    expected = [
        0.5 * (0.01 + 0.99 * step / (5 * epoch))
        if step < 5 * epoch
        else 0.25 * (1 + math.cos(math.pi * (step - 5 * epoch) / (595 * epoch)))
        for step in steps
    ]
    np.testing.assert_allclose(rates(name, IMAGENET, steps), expected, rtol=1e-4, atol=1e-9)
    assert (config.optimizer.name, config.optimizer.momentum, config.optimizer.nesterov) == ("sgd", 0.9, False)
    assert config.optimizer.weight_decay == 2e-5 and decaying(name) == {*KERNELS, "head.bias"}
    # model_ema_steps 32, model_ema_decay 0.99998: adjust = 8 * 128 * 32 / 600; alpha = min(1, 0.00002 * adjust).
    assert config.ema_decay == pytest.approx(1 - min(1, 0.00002 * 8 * 128 * 32 / 600), abs=1e-12)
    settings = build.step_settings(config, build.intervals(config, IMAGENET))
    assert (settings.ema_every, settings.ema_start) == (32, 5 * epoch)
    assert (config.data.largest_crop, config.data.crop_size, config.data.eval_shorter_side) == (176, 224, 232)
    assert config.data.interpolation == "bilinear"
    assert (config.data.repeats, config.task.loss, config.task.label_smoothing) == (4, "softmax", 0.1)
    transforms = config.transforms
    assert (transforms.trivial_augment.probability, transforms.trivial_augment.interpolation) == (1, "bilinear")
    erasing = transforms.random_erasing
    assert (erasing.probability, erasing.area, erasing.aspect, erasing.fill) == (
        0.1,
        (0.02, 0.33),
        (0.3, 3.3),
        "constant",
    )
    assert (transforms.mixing.mixup_alpha, transforms.mixing.cutmix_alpha, transforms.mixing.draw) == (0.2, 1.0, 128)
    assert (transforms.mixing.probability, transforms.mixing.switch_probability) == (1, 0.5)
    target = np.asarray(targets_of(config)["target"])
    np.testing.assert_allclose(target.sum(axis=1), 1, rtol=1e-5)
    assert ((target > 0).sum(axis=1) <= 2).all()


def test_resnet_rs():
    """resnetrs50_i160.yaml of the release, and what its training program does with it."""
    name, epoch = "resnet_rs.py", IMAGENET // 4096
    config = load(name)
    assert (build.intervals(config, IMAGENET).steps, config.batch_size) == (109_475, 4096)
    assert round(109_475 * 4096 / IMAGENET, 2) == 350
    steps = [0, 2 * epoch, 5 * epoch, 50_000, 109_474]
    expected = [
        1.6 * step / (5 * epoch)
        if step < 5 * epoch
        else 0.8 * (1 + math.cos(math.pi * (step - 5 * epoch) / (109_475 - 5 * epoch)))
        for step in steps
    ]
    np.testing.assert_allclose(rates(name, IMAGENET, steps), expected, rtol=1e-4, atol=1e-9)
    assert (config.optimizer.name, config.optimizer.momentum, config.optimizer.nesterov) == ("sgd", 0.9, True)
    assert config.optimizer.weight_decay == 4e-5 and decaying(name) == {*KERNELS, "head.bias"}
    assert (config.ema_decay, config.task.label_smoothing, config.model.dropout) == (0.9999, 0.1, 0.25)
    assert config.model.drop_path is None  # drop_connect_rate: null
    assert (config.data.largest_crop, config.data.crop_size, config.data.eval_shorter_side) == (160, 160, 192)
    augment = config.transforms.rand_augment
    assert (augment.layers, augment.magnitude, augment.bins, augment.probability) == (2, 10, 11, 1)
    assert (augment.operations, config.data.interpolation) == ("tpu", "bicubic")


@pytest.mark.parametrize(("epochs", "begin", "end"), [(16, 11, 13), (88, 65, 76)])
def test_fast_imagenet(epochs, begin, end):
    """rn50_16_epochs.yaml, rn50_88_epochs.yaml; ``get_cyclic_lr`` and ``get_resolution`` of train_imagenet.py."""
    name, epoch = f"fast_imagenet.py:{epochs}", IMAGENET // 4096
    config = load(name)
    steps = [0, epoch, 2 * epoch, 3 * epoch + 5, epochs * epoch - 1]
    expected = np.interp(np.array(steps) / epoch, [0, 2, epochs], [1e-4 * 1.7, 1.7, 0])
    np.testing.assert_allclose(rates(name, IMAGENET, steps), expected, rtol=1e-3)
    sizes = [config.data.progressive.size(e * epoch, epoch, config.data.largest_crop) for e in range(epochs)]

    def resolution(e):
        if e <= begin or e >= end:
            return 160 if e <= begin else 192
        return int(np.round(np.interp(e, [begin, end], [160, 192]) / 32)) * 32

    assert sizes == [resolution(e) for e in range(epochs)] and set(sizes) == {160, 192}
    assert (config.data.crop_size, round(config.data.crop_size / config.data.eval_shorter_side, 3)) == (256, 0.874)
    assert (config.optimizer.momentum, config.optimizer.weight_decay) == (0.9, 1e-4)
    assert decaying(name) == {*KERNELS, "head.bias"}  # What has no "bn" in its name.
    assert config.task.label_smoothing == 0.1 and config.transforms.flip.probability == 0.5
    assert "target" not in targets_of(config)


# rcps_resnet.json: rate, warm-up epochs, momentum, decay, decay steps, model_bn_span.
MLPERF = {
    4096: (10, 5, 0.9, 2e-4, 13137, 64),
    8192: (17, 5, 0.9, 2e-4, 6095, 64),
    32768: (21.2, 16, 0.94, 2.5e-5, 2267, 128),
    65536: (24.699, 31, 0.951807, 1e-4, 1133, 128),
}


@pytest.mark.parametrize("batch_size", MLPERF)
def test_mlperf(batch_size):
    name = f"mlperf.py:{batch_size}"
    rate, warmup_epochs, momentum, decay, decay_steps, span = MLPERF[batch_size]
    config, warmup = load(name), warmup_epochs * (IMAGENET // batch_size)
    assert (config.batch_size, config.steps) == (batch_size, warmup + decay_steps)
    steps = [0, warmup // 2, warmup, warmup + decay_steps // 3, warmup + decay_steps - 1]
    expected = [
        rate * (step + 1) / warmup if step < warmup else 1e-4 + (rate - 1e-4) * (1 - (step - warmup) / decay_steps) ** 2
        for step in steps
    ]
    np.testing.assert_allclose(rates(name, IMAGENET, steps), expected, rtol=1e-4)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("lars", momentum, decay)
    assert (optimizer.trust, optimizer.epsilon, config.model.bn_group_size) == (0.001, 0, span)
    assert decaying(name) == KERNELS and config.task.label_smoothing == 0.1


@pytest.mark.parametrize("cutout", [False, True])
def test_resnet18_on_cifar10(cutout):
    """arXiv 1708.04552, section 4.1: divided by 5 at epochs 60, 120 and 160 of 200; squares of 16 pixels."""
    name, epoch = f"cifar10_recipes.py:resnet18{'_cutout' if cutout else ''}", CIFAR // 128
    config = load(name)
    assert build.intervals(config, CIFAR).steps == 200 * epoch
    found = rates(name, CIFAR, [0, 60 * epoch - 1, 60 * epoch, 120 * epoch, 160 * epoch])
    np.testing.assert_allclose(found, [0.1, 0.1, 0.02, 0.004, 0.0008], rtol=1e-5)
    optimizer = config.optimizer
    assert (optimizer.momentum, optimizer.nesterov, optimizer.weight_decay) == (0.9, True, 5e-4)
    assert optimizer.decay == "all" and config.batch_size == 128
    assert (config.transforms.random_crop.pad, config.transforms.flip.probability) == (4, 0.5)
    assert config.transforms.cutout.size == (16 if cutout else 0)
    erased = np.asarray(targets_of(config, size=32)["image"] == 0)
    assert bool((erased.all(axis=-1).mean(axis=(1, 2)) >= 64 / 1024).all()) == cutout  # A quarter of it at least.


def test_the_other_recipes_on_cifar10():
    epoch = CIFAR // 128
    steps = [0, 50 * epoch, 199 * epoch]
    expected = [0.05 * (1 + math.cos(math.pi * step / (200 * epoch))) for step in steps]
    np.testing.assert_allclose(
        rates("cifar10_recipes.py:resnet18_cosine", CIFAR, steps), expected, rtol=1e-4, atol=1e-8
    )
    config = load("cifar10_recipes.py:resnet20_fast")
    assert config.steps * 16 == 3 * 64_000
    found = rates("cifar10_recipes.py:resnet20_fast", CIFAR, [0, 1_500, 3_000, 7_500, 12_000])
    np.testing.assert_allclose(found, [0.04, 0.22, 0.4, 0.2, 0], rtol=1e-4, atol=1e-9)
