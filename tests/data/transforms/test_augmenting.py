"""RandAugment and TrivialAugment: what is drawn, against torchvision's and timm's lists; and that it is done."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from resnet_jax.data.normalization import Normalization
from resnet_jax.data.transforms import RandAugment, Transforms, TrivialAugment
from resnet_jax.data.transforms.image_operations import OPERATIONS, apply
from resnet_jax.data.transforms.rand_augment import TIMM, TORCHVISION, TPU
from resnet_jax.data.transforms.streams import stream
from resnet_jax.data.transforms.trivial_augment import WIDE
from resnet_jax.errors import UserError

COUNT = 28_000
HEIGHT, WIDTH = 96, 64
NONE = Normalization(np.zeros(3, np.float32), np.ones(3, np.float32))
SIGNED = {"shear_x", "shear_y", "translate_x", "translate_y", "rotate"}
FACTORS = {"brightness", "color", "contrast", "sharpness"}


def torchvision_rand_augment(bins=31):
    """The magnitudes by operation, as ``_augmentation_space`` lists them."""
    return {
        "identity": np.zeros(bins),
        "shear_x": np.linspace(0.0, 0.3, bins),
        "shear_y": np.linspace(0.0, 0.3, bins),
        "translate_x": np.linspace(0.0, 150.0 / 331.0 * WIDTH, bins),
        "translate_y": np.linspace(0.0, 150.0 / 331.0 * HEIGHT, bins),
        "rotate": np.linspace(0.0, 30.0, bins),
        "brightness": np.linspace(0.0, 0.9, bins),
        "color": np.linspace(0.0, 0.9, bins),
        "contrast": np.linspace(0.0, 0.9, bins),
        "sharpness": np.linspace(0.0, 0.9, bins),
        "posterize": 8 - np.round(np.arange(bins) / ((bins - 1) / 4)),
        "solarize": np.linspace(255.0, 0.0, bins),
        "auto_contrast": np.zeros(bins),
        "equalize": np.zeros(bins),
    }


def torchvision_wide(bins=31):
    return torchvision_rand_augment(bins) | {
        "shear_x": np.linspace(0.0, 0.99, bins),
        "shear_y": np.linspace(0.0, 0.99, bins),
        "translate_x": np.linspace(0.0, 32.0, bins),
        "translate_y": np.linspace(0.0, 32.0, bins),
        "rotate": np.linspace(0.0, 135.0, bins),
        **{name: np.linspace(0.0, 0.99, bins) for name in FACTORS},
        "posterize": 8 - np.round(np.arange(bins) / ((bins - 1) / 6)),
    }


def timm_increasing():
    """At levels 0 to 10 (``_level_to_arg`` of the "inc" set)."""
    level = np.arange(11)
    return {
        "auto_contrast": 0 * level,
        "equalize": 0 * level,
        "invert": 0 * level,
        "rotate": level / 10 * 30.0,
        "posterize": 4 - (level / 10 * 4).astype(int),
        "solarize": 256 - (level / 10 * 256).astype(int),
        "solarize_add": np.minimum(128, (level / 10 * 110).astype(int)),
        **dict.fromkeys(FACTORS, level / 10 * 0.9),
        "shear_x": level / 10 * 0.3,
        "shear_y": level / 10 * 0.3,
        "translate_x": level / 10 * 0.45 * WIDTH,
        "translate_y": level / 10 * 0.45 * HEIGHT,
    }


def test_magnitudes_of_the_release_of_resnet_rs_are_its_formulas():
    """``level_to_arg`` of tensorflow/tpu's autoaugment.py, with translate_const 100."""
    assert set(TPU) == set(TIMM)
    for magnitude in (0, 3, 10):
        found = {name: float(TPU[name](jnp.float32(magnitude / 10), -1, HEIGHT, WIDTH)) for name in TPU}
        part = magnitude / 10
        expected = dict.fromkeys(FACTORS, part * 1.8 + 0.1)
        expected |= {"posterize": int(part * 4), "solarize": int(part * 256), "solarize_add": int(part * 110)}
        expected |= {"rotate": -part * 30, "shear_x": -part * 0.3, "shear_y": -part * 0.3}
        expected |= {"translate_x": -part * 100, "translate_y": -part * 100}
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("known", "listed", "whole_pixels", "least_factor"),
    [
        (TORCHVISION, torchvision_rand_augment(), True, 0.0),
        (WIDE, torchvision_wide(), True, 0.0),
        (TIMM, timm_increasing(), False, 0.1),
    ],
    ids=["rand_augment", "trivial_augment", "timm"],
)
def test_magnitudes_are_those_of_the_reference(known, listed, whole_pixels, least_factor):
    assert set(known) == set(listed)
    for name, magnitudes in listed.items():
        level = jnp.linspace(0, 1, len(magnitudes))
        for sign in (-1, 1):
            expected = np.asarray(magnitudes, np.float64)
            if whole_pixels and name.startswith("translate"):
                expected = expected.astype(int)
            if name in SIGNED:
                expected = sign * expected
            if name in FACTORS:
                expected = np.maximum(least_factor, 1 + sign * expected)
            found = known[name](level, jnp.float32(sign), HEIGHT, WIDTH)
            # Where the whole part is taken, rounding may fall on either side of it.
            exact = name in ("posterize", "solarize", "solarize_add") or name.startswith("translate")
            close = np.isclose(found, expected, rtol=1e-5, atol=1e-4)
            assert close.all() or (exact and np.abs(found - expected).max() <= 1 and close.mean() > 0.9), name


def assert_uniform(codes, choices):
    counts = np.array([np.sum(codes == choice) for choice in choices])
    assert counts.sum() == len(codes)
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_trivial_augment_draws_operation_sign_and_magnitude_uniformly():
    drawn = TrivialAugment(probability=1.0).draw(jax.random.key(1), COUNT, HEIGHT, WIDTH)
    code, magnitude = np.asarray(drawn.code), np.asarray(drawn.magnitude)
    assert_uniform(code, [OPERATIONS.index(name) for name in torchvision_wide()])
    angles = magnitude[code == OPERATIONS.index("rotate")] / 135 * 30
    np.testing.assert_allclose(angles, np.round(angles), atol=1e-3)
    places = np.round(angles).astype(int)
    counts = np.bincount(places + 30, minlength=61)
    expected = np.where(np.arange(61) == 30, 2, 1) / 62 * len(places)  # 0 with either sign.
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-4


def test_rand_augment_draws_operations_uniformly_each_of_them_with_its_probability():
    settings = RandAugment(layers=2, magnitude=7.0, magnitude_std=0.5, bins=11, probability=0.5, operations="timm")
    drawn = settings.draw(jax.random.key(2), COUNT, HEIGHT, WIDTH)
    code, magnitude = np.asarray(drawn.code), np.asarray(drawn.magnitude)
    done = code != OPERATIONS.index("identity")
    assert abs(done.mean() - 0.5) < 5 * np.sqrt(0.25 / COUNT)
    assert_uniform(code[done], [OPERATIONS.index(name) for name in timm_increasing()])
    angles = magnitude[code == OPERATIONS.index("rotate")]
    levels = np.abs(angles) / 3  # Normal around 7, with a standard deviation of 0.5; none is cut off at 10.
    assert scipy.stats.kstest(levels, "norm", (7, 0.5)).pvalue > 1e-4
    assert abs(np.mean(angles > 0) - 0.5) < 5 * np.sqrt(0.25 / len(angles))


def test_a_level_stays_within_its_range():
    settings = RandAugment(layers=1, magnitude=29.0, magnitude_std=5.0)
    drawn = settings.draw(jax.random.key(3), COUNT, HEIGHT, WIDTH)
    angles = np.abs(np.asarray(drawn.magnitude)[np.asarray(drawn.code) == OPERATIONS.index("rotate")])
    assert angles.max() == 30 and np.mean(angles == 30) > 0.3


def images(count=8, channels=3):
    return np.random.default_rng(0).integers(0, 256, (count, 12, 10, channels), dtype=np.uint8)


@pytest.mark.extensive
def test_a_batch_is_changed_by_what_is_drawn_and_then_normalised():
    layers = RandAugment(layers=2, interpolation="bilinear", fill=9)
    transforms, batch = Transforms(rand_augment=layers), {"image": images(), "label": np.zeros(8, int)}

    @jax.jit
    def both(key):
        changed = batch["image"]
        for layer_key in jax.random.split(stream(key, "rand_augment")):
            changed = apply(layers.draw(layer_key, 8, 12, 10), changed, "bilinear", 9)
        return transforms.apply(key, batch, NONE, 10)["image"], changed

    found, expected = both(jax.random.key(4))
    assert expected.dtype == jnp.uint8 and not np.array_equal(expected, batch["image"])
    np.testing.assert_allclose(found, np.asarray(expected) / 255, rtol=1e-6)


@pytest.mark.extensive
def test_trivial_augment_leaves_images_alone_with_the_rest_of_its_probability():
    many = np.repeat(images(1), 2000, axis=0)
    changed = jax.jit(lambda key: TrivialAugment(probability=0.25)(key, {"image": many}, NONE, 10)["image"])
    share = np.mean((np.asarray(changed(jax.random.key(5))) != many).any(axis=(1, 2, 3)))
    assert share < 0.25 and abs(share - 0.25 * 12.4 / 14) < 0.05  # Identity, and magnitudes that change nothing.


@pytest.mark.parametrize("transform", [RandAugment(layers=1), TrivialAugment(probability=1.0)], ids=["rand", "trivial"])
def test_images_that_are_not_rgb_are_refused(transform):
    with pytest.raises(UserError, match=r"_augment is for RGB, and the images have 1 channels; leave it off"):
        transform(jax.random.key(0), {"image": images(channels=1)}, NONE, 10)
