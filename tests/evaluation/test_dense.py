"""Networks on photographs laid on a canvas, against the same networks written out in NumPy for each one alone."""

from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np
import pytest

from resnet_jax.errors import UserError
from resnet_jax.evaluation.dense import check_dense, dense_logits
from resnet_jax.models import create_model, norms
from resnet_jax.models.attention import EfficientChannelAttention, SqueezeExcitation
from resnet_jax.models.blocks import BasicBlock
from resnet_jax.models.layers import BatchNorm, Conv, GlobalMean
from resnet_jax.models.pooling import BlurPool, MaxOfNeighbours, MeanPool, WholeMeanPool, ZeroPaddedMaxPool
from resnet_jax.models.stacking import unstack_blocks
from resnet_jax.models.standardised import StandardisedConv

CANVAS = (64, 64)
# Every height and every width modulo the network's stride, so maps of odd and even sizes after every stride, upright
# and lying; and photographs of a few pixels.
SIZES = [(33 + i, 33 + 11 * i % 32) for i in range(32)] + [(1, 1), (2, 64), (7, 5), (64, 20), (64, 64)]


class SqueezeAndExcitation(nn.Module):
    """Rescales channels by what their means say (Hu et al., arXiv 1709.01507)."""

    dense: ClassVar[str] = "container"

    dtype: Any = np.float32

    @nn.compact
    def __call__(self, x):
        squeezed = nn.relu(nn.Dense(2, name="squeeze")(GlobalMean()(x)))
        return x * nn.sigmoid(nn.Dense(x.shape[-1], name="excite")(squeezed))[:, None, None, :].astype(x.dtype)


VARIANTS = {
    "basic-A": {"name": "resnet18", "shortcut": "A"},
    "basic-B": {"name": "resnet18", "stage_sizes": (1, 1, 1, 1)},
    "basic-C": {"name": "resnet18", "shortcut": "C"},
    "basic-plain": {"name": "plain18"},
    "basic-gated": {"name": "highway20"},
    "bottleneck-A-v1": {"name": "resnet50", "shortcut": "A"},
    "bottleneck-B-v1": {"name": "resnet50", "stage_sizes": (1, 1, 1, 1)},
    "bottleneck-B-v1.5": {"name": "resnet50", "stride_placement": "v1.5"},
    "bottleneck-C-v1.5": {"name": "resnet50", "stride_placement": "v1.5", "shortcut": "C"},
    "scan": {"name": "resnet18", "stage_sizes": (3, 2), "scan_blocks": True},
    "remat": {"name": "resnet18", "remat": True},
    "scan-remat": {"name": "resnet50", "stage_sizes": (1, 3), "scan_blocks": True, "remat": True},
    "cifar-stem": {"name": "resnet20"},
    "squeeze-and-excitation": {"name": "resnet18", "attention": SqueezeAndExcitation},
    # Below 0 in places, which the stem's pooling must not take for less than what is beyond the edge; and not 0 of 0.
    "silu": {"name": "resnet18", "activation": nn.silu},
    "softplus": {"name": "resnet18", "shortcut": "A", "activation": nn.softplus},
}
ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "softplus": lambda x: np.log1p(np.exp(x)),
}


def make(variant):
    return create_model(**{"stage_sizes": (1, 1), "width": 4, "num_classes": 7} | VARIANTS[variant])


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


def alone(variant, variables, image):
    """The logits of one photograph (H, W, 3), in float64."""
    settings = VARIANTS[variant]
    activation = ACTIVATIONS.get(variant, lambda x: np.maximum(x, 0))
    params, stats = (unstack_blocks(variables)[name] for name in ("params", "batch_stats"))

    def conv(x, name, stride, block=None):
        layer = (params[block] if block else params)[name]
        kernel = np.float64(layer["kernel"])
        y = sum(part @ kernel[i, j] for i, j, part in windows(x, len(kernel), stride, fill=0))
        return y + layer["bias"] if "bias" in layer else y

    def norm(x, name, block=None):
        learnt, kept = (tree[block][name] if block else tree[name] for tree in (params, stats))
        return (x - kept["mean"]) / np.sqrt(kept["var"] + np.float64(1e-5)) * learnt["scale"] + learnt["bias"]

    def shortcut(x, block, stride, channels):
        if "projection_conv" in params[block]:
            return norm(conv(x, "projection_conv", stride, block), "projection_bn", block)
        more = channels - x.shape[2]
        return np.pad(x[::stride, ::stride], ((0, 0), (0, 0), (more // 2, more - more // 2)))

    def rescaled(x, squeeze, excite):
        squeezed = np.maximum(x.mean(axis=(0, 1)) @ squeeze["kernel"] + squeeze["bias"], 0)
        return x / (1 + np.exp(-(squeezed @ excite["kernel"] + excite["bias"])))

    def residual(x, block, stride):
        last = 3 if "conv3" in params[block] else 2
        strides = {"conv2" if settings.get("stride_placement") == "v1.5" else "conv1": stride}
        for i in range(1, last + 1):
            x = norm(conv(x, f"conv{i}", strides.get(f"conv{i}", 1), block), f"bn{i}", block)
            x = activation(x) if i < last else x
        return rescaled(x, **params[block]["attention"]) if "attention" in params[block] else x

    imagenet = len(params["stem_conv"]["kernel"]) == 7
    x = activation(norm(conv(np.float64(image), "stem_conv", 2 if imagenet else 1), "stem_bn"))
    if imagenet:
        x = np.max([part for _, _, part in windows(x, 3, 2, fill=-np.inf)], axis=0)
    for block in sorted(name for name in params if name.startswith("stage")):
        stride = 2 if block.endswith("block1") and not block.startswith("stage1") else 1
        y = residual(x, block, stride)
        if "gate_conv" in params[block]:
            gate = 1 / (1 + np.exp(-conv(x, "gate_conv", stride, block)))
            y = gate * y + (1 - gate) * shortcut(x, block, stride, y.shape[2])
        elif not settings["name"].startswith("plain"):
            y = y + shortcut(x, block, stride, y.shape[2])
        x = activation(y)
    positions = x.reshape(-1, x.shape[2])
    return sum(positions) / len(positions) @ params["head"]["kernel"] + params["head"]["bias"]


def all_alone(variant, variables, images, sizes):
    return np.array([alone(variant, variables, image[:h, :w]) for image, (h, w) in zip(images, sizes, strict=True)])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.extensive
def test_photographs_on_a_canvas_score_what_each_does_alone(variant, random_variables):
    model, (images, sizes) = make(variant), inputs()
    variables = random_variables(model)
    found = jax.jit(lambda *args: dense_logits(model, *args))(variables, images, sizes)
    expected = all_alone(variant, variables, images, sizes)
    assert found.dtype == np.float32
    assert expected.std(axis=0).min() > 0.01  # The photographs do not all score alike.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_photograph_that_fills_its_canvas_scores_what_the_network_itself_says(random_variables):
    model, (images, sizes) = make("basic-B"), inputs([CANVAS] * 2)
    variables = random_variables(model)
    expected = jax.jit(model.apply)(variables, images)
    found = jax.jit(lambda *args: dense_logits(model, *args))(variables, images, sizes)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(all_alone("basic-B", variables, images, sizes), expected, rtol=1e-5, atol=1e-5)


def test_logits_of_a_bfloat16_network_are_float32_and_near_those_of_full_precision(random_variables):
    model, (images, sizes) = make("basic-B"), inputs(SIZES[:4])
    variables = random_variables(model)
    found = jax.jit(lambda *args: dense_logits(model.clone(dtype="bfloat16"), *args))(variables, images, sizes)
    assert found.dtype == np.float32
    error = np.abs(found - all_alone("basic-B", variables, images, sizes))
    assert 1e-4 < error.max() < 0.1


def test_without_masks_photographs_that_leave_room_score_otherwise(random_variables, monkeypatch):
    model, (images, sizes) = make("bottleneck-B-v1"), inputs([*SIZES[:4], CANVAS])
    variables = random_variables(model)
    monkeypatch.setattr(nn, "intercept_methods", lambda interceptor: nullcontext())
    bare = jax.jit(lambda *args: dense_logits(model, *args))(variables, images, sizes)
    error = np.abs(bare - all_alone("bottleneck-B-v1", variables, images, sizes)).max(axis=1)
    assert (error[:-1] > 1e-3).all()
    assert error[-1] < 1e-5  # It fills the canvas.


class Undeclared(nn.Module):
    """Averages over positions, beyond the photograph's edge, too."""

    dtype: Any = np.float32

    @nn.compact
    def __call__(self, x):
        return x * nn.sigmoid(x.mean(axis=(1, 2), keepdims=True))


class GroupNorm(nn.Module):
    """Flax's, of one group, called as a ``BatchNorm``."""

    dense: ClassVar[str] = "container"

    use_running_average: bool
    dtype: Any = np.float32
    scale_init: Any = nn.initializers.ones

    @nn.compact
    def __call__(self, x):
        return nn.GroupNorm(num_groups=1)(x)


class UndeclaredBlock(BasicBlock):
    dense = None

    @nn.compact
    def __call__(self, x, drop_path=None):
        return super().__call__(nn.avg_pool(x, (3, 3), padding="SAME"), drop_path)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"attention": Undeclared}, "Undeclared"),
        ({"block": UndeclaredBlock}, "UndeclaredBlock"),
        ({"block": partial(UndeclaredBlock)}, "UndeclaredBlock"),
        ({"norm": GroupNorm}, "GroupNorm"),
    ],
    ids=["attention", "block", "partial", "norm"],
)
@pytest.mark.parametrize("layout", [{}, {"scan_blocks": True, "remat": True}], ids=["unrolled", "scan-remat"])
def test_a_network_with_a_module_that_does_not_say_what_it_does_is_refused(fields, named, layout, random_variables):
    model = create_model("resnet18", 7, stage_sizes=(1, 2), width=4, **layout, **fields)
    with pytest.raises(UserError, match=rf"multi_scale is not for networks with a \S+\.\w*{named}, whose") as caught:
        jax.eval_shape(lambda *args: dense_logits(model, *args), random_variables(model), *inputs(SIZES[:2]))
    assert "\n" not in str(caught.value)


def test_a_network_without_a_dense_form_is_refused_before_anything_is_traced():
    with pytest.raises(UserError, match=r"not for networks with a resnet_jax\.models\.vgg\.VGG, .*; use ten_crop"):
        check_dense(create_model("vgg16", 7))
    check_dense(create_model("resnet20"))


def test_a_canvas_that_the_network_s_strides_do_not_divide_is_refused(random_variables):
    model = create_model("resnet18", 7, stage_sizes=(1, 1, 1, 1, 1), width=2)  # Its last map has stride 64.
    images, sizes = np.zeros((1, 96, 64, 3), np.float32), np.array([[96, 64]], np.int32)
    with pytest.raises(
        UserError, match="96 x 64 pixels, which the network's stride of 64 does not divide; use ten_crop"
    ):
        jax.eval_shape(lambda *args: dense_logits(model, *args), random_variables(model), images, sizes)


class OneModule(nn.Module):
    """A convolution, what a module makes of it, and a second convolution, whose values count at every position."""

    dense: ClassVar[str] = "container"
    strides: ClassVar[tuple[int, ...]] = (1, 2)

    module: Any

    @nn.compact
    def __call__(self, x, train=False):
        # Far from 0, so that what is read beyond an edge would show.
        x = BatchNorm(use_running_average=True, name="bn")(Conv(8, 3, name="before")(x)) - 3
        x = Conv(5, 3, name="after")(self.module(name="module")(x))
        return GlobalMean(name="mean")(x)


@pytest.mark.parametrize(
    "module",
    [
        MeanPool,
        WholeMeanPool,
        BlurPool,
        MaxOfNeighbours,
        ZeroPaddedMaxPool,
        norms.GroupNorm,
        norms.EvoNormS0,
        norms.FilterResponseNorm,
        SqueezeExcitation,
        EfficientChannelAttention,
        partial(StandardisedConv, 4, 3, 2),
    ],
    ids=lambda module: getattr(module, "__name__", "StandardisedConv"),
)
@pytest.mark.extensive
def test_each_module_computes_on_a_canvas_what_it_does_on_the_photograph_alone(module, random_variables):
    model = OneModule(module)
    sizes = [(10, 7), (3, 8), (2, 3) if module is WholeMeanPool else (1, 2), (12, 12)]
    x = np.random.default_rng(1).normal(size=(len(sizes), 12, 12, 3)).astype(np.float32)
    variables = random_variables(model, image_shape=(12, 12, 3))
    found = jax.jit(partial(dense_logits, model))(variables, x, np.array(sizes, np.int32))
    for i, (height, width) in enumerate(sizes):
        alone = model.apply(variables, x[i : i + 1, :height, :width])[0]
        np.testing.assert_allclose(found[i], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnetaa34d", "resnetblur50d", "resnetv2_50x1_bit"])
@pytest.mark.extensive
def test_relatives_score_photographs_as_they_would_alone(name, random_variables):
    model = create_model(name, 7, width=8, stage_sizes=(2, 1), scan_blocks=False)
    variables = random_variables(model)
    sizes = [(21, 14), (32, 32)]
    x = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    found = jax.jit(partial(dense_logits, model))(variables, x, np.array(sizes, np.int32))
    for i, (height, width) in enumerate(sizes):
        alone = jax.jit(model.apply)(variables, x[i : i + 1, :height, :width])[0]
        np.testing.assert_allclose(found[i], alone, rtol=1e-4, atol=1e-4 * np.abs(alone).max())
