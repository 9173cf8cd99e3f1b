"""Networks on photographs laid on a canvas, against the same networks written out in NumPy for each one alone."""

from contextlib import nullcontext

import flax.linen as nn
import jax
import numpy as np
import pytest

from resnet_jax.evaluation.dense import dense_logits
from resnet_jax.models import create_model
from resnet_jax.models.stacking import unstack_blocks

CANVAS = (64, 64)
# Every height and every width modulo the network's stride, so maps of odd and even sizes after every stride, upright
# and lying; and photographs of a few pixels.
SIZES = [(33 + i, 33 + 11 * i % 32) for i in range(32)] + [(1, 1), (2, 64), (7, 5), (64, 20), (64, 64)]

VARIANTS = {
    "basic-A": {"name": "resnet18", "shortcut": "A"},
    "basic-B": {"name": "resnet18", "stage_sizes": (1, 1, 1, 1)},
    "basic-C": {"name": "resnet18", "shortcut": "C"},
    "basic-plain": {"name": "plain18"},
    "bottleneck-A-v1": {"name": "resnet50", "shortcut": "A"},
    "bottleneck-B-v1": {"name": "resnet50", "stage_sizes": (1, 1, 1, 1)},
    "bottleneck-B-v1.5": {"name": "resnet50", "stride_placement": "v1.5"},
    "bottleneck-C-v1.5": {"name": "resnet50", "stride_placement": "v1.5", "shortcut": "C"},
    "scan": {"name": "resnet18", "stage_sizes": (3, 1, 2), "scan_blocks": True},
    "remat": {"name": "resnet18", "remat": True},
    "scan-remat": {"name": "resnet50", "stage_sizes": (1, 3), "scan_blocks": True, "remat": True},
    "cifar-stem": {"name": "resnet20"},
}


def make(variant):
    return create_model(**{"stage_sizes": (1, 1, 1), "width": 4, "num_classes": 7} | VARIANTS[variant])


def inputs(sizes=SIZES):
    """Photographs at the top left of a canvas that is full of rubbish elsewhere."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(len(sizes), *CANVAS, 3)).astype(np.float32), np.array(sizes, np.int32)


def windows(x, size, stride, fill):
    """What each place of a size x size window sees of x (H, W, C), padded by size // 2 on every side."""
    pad = size // 2
    x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)), constant_values=fill)
    height, width = ((length - size) // stride * stride + 1 for length in x.shape[:2])
    for i in range(size):
        for j in range(size):
            yield i, j, x[i : i + height : stride, j : j + width : stride]


def alone(model, variables, image):
    """The logits of one photograph (H, W, 3), in float64."""
    params, stats = (unstack_blocks(variables)[name] for name in ("params", "batch_stats"))

    def conv(x, name, stride, block=None):
        kernel = np.float64((params[block] if block else params)[name]["kernel"])
        return sum(part @ kernel[i, j] for i, j, part in windows(x, len(kernel), stride, fill=0))

    def norm(x, name, block=None):
        learnt, kept = (tree[block][name] if block else tree[name] for tree in (params, stats))
        return (x - kept["mean"]) / np.sqrt(kept["var"] + np.float64(1e-5)) * learnt["scale"] + learnt["bias"]

    def shortcut(x, block, stride, channels):
        if "projection_conv" in params[block]:
            return norm(conv(x, "projection_conv", stride, block), "projection_bn", block)
        more = channels - x.shape[2]
        return np.pad(x[::stride, ::stride], ((0, 0), (0, 0), (more // 2, more - more // 2)))

    def residual(x, block, stride):
        strides = {"conv1": stride}
        if model.bottleneck and model.stride_placement == "v1.5":
            strides = {"conv2": stride}
        last = 3 if model.bottleneck else 2
        for i in range(1, last + 1):
            x = norm(conv(x, f"conv{i}", strides.get(f"conv{i}", 1), block), f"bn{i}", block)
            x = np.maximum(x, 0) if i < last else x
        return x

    imagenet = model.stem == "imagenet"
    x = np.maximum(norm(conv(np.float64(image), "stem_conv", 2 if imagenet else 1), "stem_bn"), 0)
    if imagenet:
        x = np.max([part for _, _, part in windows(x, 3, 2, fill=-np.inf)], axis=0)
    for stage, blocks in enumerate(model.stage_sizes, start=1):
        for number in range(1, blocks + 1):
            block, stride = f"stage{stage}_block{number}", 2 if number == 1 < stage else 1
            y = residual(x, block, stride)
            x = np.maximum(y if model.shortcut is None else y + shortcut(x, block, stride, y.shape[2]), 0)
    positions = x.reshape(-1, x.shape[2])
    return sum(positions) / len(positions) @ params["head"]["kernel"] + params["head"]["bias"]


def all_alone(model, variables, images, sizes):
    return np.array([alone(model, variables, image[:h, :w]) for image, (h, w) in zip(images, sizes, strict=True)])


@pytest.mark.parametrize("variant", VARIANTS)
def test_photographs_on_a_canvas_score_what_each_does_alone(variant, random_variables):
    model, (images, sizes) = make(variant), inputs()
    variables = random_variables(model)
    found = jax.jit(lambda *args: dense_logits(model, *args))(variables, images, sizes)
    expected = all_alone(model, variables, images, sizes)
    assert found.dtype == np.float32
    assert expected.std(axis=0).min() > 0.01  # The photographs do not all score alike.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_photograph_that_fills_its_canvas_scores_what_the_network_itself_says(random_variables):
    model, (images, sizes) = make("basic-B"), inputs([CANVAS] * 2)
    variables = random_variables(model)
    expected = jax.jit(model.apply)(variables, images)
    found = jax.jit(lambda *args: dense_logits(model, *args))(variables, images, sizes)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(all_alone(model, variables, images, sizes), expected, rtol=1e-5, atol=1e-5)


def test_logits_of_a_bfloat16_network_are_float32_and_near_those_of_full_precision(random_variables):
    model, (images, sizes) = make("basic-B"), inputs(SIZES[:4])
    variables = random_variables(model)
    found = jax.jit(lambda *args: dense_logits(model.clone(dtype="bfloat16"), *args))(variables, images, sizes)
    assert found.dtype == np.float32
    error = np.abs(found - all_alone(model, variables, images, sizes))
    assert 1e-4 < error.max() < 0.1


def test_without_masks_photographs_that_leave_room_score_otherwise(random_variables, monkeypatch):
    model, (images, sizes) = make("bottleneck-B-v1"), inputs([*SIZES[:4], CANVAS])
    variables = random_variables(model)
    monkeypatch.setattr(nn, "intercept_methods", lambda interceptor: nullcontext())
    bare = jax.jit(lambda *args: dense_logits(model, *args))(variables, images, sizes)
    error = np.abs(bare - all_alone(model, variables, images, sizes)).max(axis=1)
    assert (error[:-1] > 1e-3).all()
    assert error[-1] < 1e-5  # It fills the canvas.
