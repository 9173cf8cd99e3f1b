"""mixup and CutMix: images and targets by hand, and the distribution of what is drawn."""

from functools import partial

import jax
import numpy as np
import pytest
import scipy.stats

from resnet_jax import parallel
from resnet_jax.data.normalization import Normalization
from resnet_jax.data.transforms import Mixing
from resnet_jax.data.transforms.mixing import boxes
from resnet_jax.errors import UserError

NONE = Normalization(np.zeros(1, np.float32), np.ones(1, np.float32))
CLASSES = 6


def batch(count=CLASSES, height=8, width=10):
    """Image i is i everywhere, and so is its label."""
    images = np.broadcast_to(np.arange(count, dtype=np.float32)[:, None, None, None], (count, height, width, 1))
    return {"image": images, "label": np.arange(count)}


def draws(mixing, count, **shape):
    """The images and targets of many keys, compiled once."""
    run = jax.jit(jax.vmap(lambda key: mixing(key, batch(**shape), NONE, CLASSES)))
    mixed = run(jax.random.split(jax.random.key(0), count))
    return np.asarray(mixed["image"]), np.asarray(mixed["target"])


@pytest.mark.parametrize("draw", ["batch", "example", 2])
def test_mixup_mixes_each_image_and_target_with_the_one_before(draw):
    images, targets = draws(Mixing(mixup_alpha=0.4, draw=draw), 600)
    share = np.stack([targets[:, i, i] for i in range(CLASSES)], axis=1)
    eye, before = np.eye(CLASSES), np.roll(np.eye(CLASSES), 1, axis=0)
    np.testing.assert_allclose(targets, share[..., None] * eye + (1 - share[..., None]) * before, atol=1e-5)
    values, previous = np.arange(CLASSES), np.roll(np.arange(CLASSES), 1)
    expected = share * values + (1 - share) * previous
    np.testing.assert_allclose(images, np.broadcast_to(expected[..., None, None, None], images.shape), atol=1e-4)
    if draw == "batch":
        assert np.ptp(share, axis=1).max() < 1e-6
    elif draw == 2:
        np.testing.assert_allclose(share[:, ::2], share[:, 1::2], atol=1e-6)
        assert (np.ptp(share[:, ::2], axis=1) > 0).all()
    else:
        assert (np.ptp(share, axis=1) > 0).all()
    assert scipy.stats.kstest(share[:, 0], "beta", (0.4, 0.4)).pvalue > 1e-4


def test_a_batch_is_divided_as_it_is_drawn_for():
    assert Mixing(mixup_alpha=0.4, draw=8)(jax.random.key(0), batch(), NONE, CLASSES)["image"].shape[0] == CLASSES
    with pytest.raises(UserError, match=r"batch_size 6 is not a multiple of config\.transforms\.mixing\.draw 4"):
        Mixing(mixup_alpha=0.4, draw=4)(jax.random.key(0), batch(), NONE, CLASSES)


@pytest.mark.extensive
def test_cutmix_pastes_a_rectangle_and_the_target_says_how_much_is_left():
    images, targets = draws(Mixing(cutmix_alpha=1.0), 500, height=16, width=24)
    sizes = []
    for image, target in zip(images[:, 3, :, :, 0], targets[:, 3], strict=True):
        pasted = image == 2
        assert (pasted | (image == 3)).all()
        np.testing.assert_allclose(target[[2, 3]], [pasted.mean(), 1 - pasted.mean()], atol=1e-6)
        if pasted.any():
            rows, columns = np.flatnonzero(pasted.any(axis=1)), np.flatnonzero(pasted.any(axis=0))
            assert pasted.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        sizes.append(pasted.mean())
    assert min(sizes) < 0.02 and max(sizes) > 0.8


@pytest.mark.extensive
def test_rectangles_of_cutmix_are_those_of_torchvision():
    """Half sides of the whole part of sqrt(1 - share) times the side, halved; around any pixel; cut at the edges."""
    share = np.repeat(np.float32([0.0, 0.3, 0.91, 1.0]), 3000)
    top, left, bottom, right = (np.asarray(edge) for edge in boxes(jax.random.key(1), share, 16, 24))
    for value in np.unique(share):
        here = share == value
        half_height, half_width = (int(0.5 * np.sqrt(1 - float(value)) * side) for side in (16, 24))
        expected = {
            (max(y - half_height, 0), max(x - half_width, 0), min(y + half_height, 16), min(x + half_width, 24))
            for y in range(16)
            for x in range(24)
        }
        found = {tuple(box) for box in np.stack([top, left, bottom, right], axis=1)[here].tolist()}
        assert found <= expected and len(found) > 0.9 * len(expected)


@pytest.mark.extensive
def test_both_by_chance_are_one_of_the_two_with_their_probabilities():
    mixing = Mixing(mixup_alpha=0.5, cutmix_alpha=0.7, probability=0.8, switch_probability=0.25)
    images, targets = draws(mixing, 3000, height=32, width=32)
    image, target = images[:, 3, :, :, 0], targets[:, 3]
    cut = ((image == 2) | (image == 3)).all(axis=(1, 2)) & (image == 2).any(axis=(1, 2))
    untouched = (image == 3).all(axis=(1, 2)) & (target[:, 3] == 1)
    mixed = ~cut & ~untouched
    # A rectangle of no pixel, or a share that rounds to 1, looks untouched.
    for share, expected in ((untouched.mean(), 0.2), (cut.mean(), 0.8 * 0.25), (mixed.mean(), 0.8 * 0.75)):
        assert abs(share - expected) < 0.05
    np.testing.assert_allclose(target[untouched].argmax(axis=1), 3)


@pytest.mark.extensive
def test_targets_that_are_soft_already_are_mixed():
    soft = np.random.default_rng(0).dirichlet(np.ones(CLASSES), CLASSES).astype(np.float32)
    run = jax.jit(partial(Mixing(mixup_alpha=1.0), normalization=NONE, num_classes=CLASSES))
    mixed = run(jax.random.key(3), batch() | {"target": soft})
    share = float(run(jax.random.key(3), batch())["target"][0, 0])
    np.testing.assert_allclose(mixed["target"], share * soft + (1 - share) * np.roll(soft, 1, axis=0), atol=1e-6)


@pytest.mark.extensive
def test_eight_devices_mix_as_one_does_and_labels_stay(eight_devices):
    whole = batch(count=16) | {"label": np.arange(16) % CLASSES}
    run = jax.jit(partial(Mixing(cutmix_alpha=1.0), normalization=NONE, num_classes=CLASSES))
    placed = parallel.to_global(whole, parallel.sharded_batch(eight_devices))
    mixed, alone = (run(jax.random.key(5), given) for given in (placed, whole))
    np.testing.assert_array_equal(mixed["label"], whole["label"])
    np.testing.assert_allclose(mixed["image"], alone["image"], atol=1e-6)
    np.testing.assert_allclose(np.asarray(mixed["target"]).sum(axis=1), 1, rtol=1e-5)
