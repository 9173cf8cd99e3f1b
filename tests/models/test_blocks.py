from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, traverse_util

from resnet_jax.errors import UserError
from resnet_jax.models.blocks import BasicBlock, BottleneckBlock
from resnet_jax.models.layers import BatchNorm, Conv
from resnet_jax.models.shortcuts import SHORTCUTS, padded

torch = pytest.importorskip("torch")
nn = torch.nn
F = torch.nn.functional

PARTS = {"conv": Conv, "norm": partial(BatchNorm, use_running_average=False)}


class TorchProjection(nn.Module):
    def __init__(self, channels, filters, strides):
        super().__init__()
        self.projection_conv = nn.Conv2d(channels, filters, 1, strides, bias=False)
        self.projection_bn = nn.BatchNorm2d(filters)

    def forward(self, x):
        return self.projection_bn(self.projection_conv(x))


class TorchPaddedIdentity(nn.Module):
    """Copies every strides-th pixel into the middle channels of zeros, one pixel at a time."""

    def __init__(self, channels, filters, strides):
        super().__init__()
        self.channels, self.filters, self.strides = channels, filters, strides

    def forward(self, x):
        height, width = ((size + self.strides - 1) // self.strides for size in x.shape[2:])
        output = torch.zeros(x.shape[0], self.filters, height, width)
        first = (self.filters - self.channels) // 2
        for row in range(height):
            for column in range(width):
                pixel = x[:, :, row * self.strides, column * self.strides]
                output[:, first : first + self.channels, row, column] = pixel
        return output


class TorchGate(nn.Module):
    """transform * residual + (1 - transform) * shortcut, the transform gate being a function of the input."""

    def __init__(self, channels, filters, strides):
        super().__init__()
        self.gate_conv = nn.Conv2d(channels, filters, 1, strides)
        self.identity = TorchPaddedIdentity(channels, filters, strides)

    def forward(self, x, residual):
        transform = torch.sigmoid(self.gate_conv(x))
        return transform * residual + (1 - transform) * self.identity(x)


class TorchBlock(nn.Module):
    """Convolutions given as (filters, size, strides) rows, and the module that makes the shortcut, or None."""

    def __init__(self, channels, rows, shortcut):
        super().__init__()
        self.depth = len(rows)
        for i, (filters, size, strides) in enumerate(rows, start=1):
            setattr(self, f"conv{i}", nn.Conv2d(channels, filters, size, strides, padding=size // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(filters))
            channels = filters
        self.shortcut = shortcut

    def forward(self, x):
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            if i < self.depth:
                y = F.relu(y)
        if isinstance(self.shortcut, TorchGate):
            return F.relu(self.shortcut(x, y))
        return F.relu(y if self.shortcut is None else y + self.shortcut(x))


def as_torch_tensors(params):
    """Parameters of a block, named and laid out as in ``TorchBlock``."""
    tensors = {}
    for (module, leaf), value in traverse_util.flatten_dict(params).items():
        prefix = "shortcut." if module.startswith(("projection", "gate")) else ""
        tensor = torch.tensor(np.asarray(value))
        name = {"kernel": "weight", "scale": "weight", "bias": "bias"}[leaf]
        tensors[f"{prefix}{module}.{name}"] = tensor.permute(3, 2, 0, 1) if leaf == "kernel" else tensor
    return tensors


def randomised(params, seed=0):
    """Random scales and biases too, so that a normalisation in the wrong place shows."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim == 4 else 1
        offset = 1.0 if path[-1].key == "scale" else 0.0
        return (offset + rng.normal(size=leaf.shape) * (1 / np.sqrt(fan_in) if leaf.ndim == 4 else 0.3)).astype("f")

    return jax.tree_util.tree_map_with_path(draw, params)


def images(channels, size=6):
    return np.random.default_rng(3).normal(size=(3, size, size, channels)).astype(np.float32)


def check_against_torch(block, reference, x):
    """Compares output, input gradient and every parameter's gradient in training mode."""
    shapes = jax.eval_shape(block.init, jax.random.key(0), x)
    params = randomised(shapes["params"])
    stats = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes["batch_stats"])

    def loss(params, x):
        output, _ = block.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
        return jnp.mean(output**2), output

    (params_gradient, x_gradient), output = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, x)

    parameters = dict(reference.named_parameters())
    weights = as_torch_tensors(params)
    assert weights.keys() == parameters.keys()
    reference.load_state_dict(weights, strict=False)
    torch_x = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
    torch_output = reference.train()(torch_x)
    (torch_output**2).mean().backward()

    expected = torch_output.detach().permute(0, 2, 3, 1).numpy()
    assert expected.max() > 0.5
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5 * expected.max())
    gradients = {"input": torch.tensor(np.asarray(x_gradient)).permute(0, 3, 1, 2), **as_torch_tensors(params_gradient)}
    expected_gradients = {"input": torch_x.grad} | {name: tensor.grad for name, tensor in parameters.items()}
    scale = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        np.testing.assert_allclose(gradients[name], gradient, rtol=0, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize(
    "channels, filters, strides, size",
    [(4, 8, 2, 8), (4, 8, 2, 7), (3, 8, 2, 6), (4, 4, 1, 5), (4, 4, 2, 6), (4, 9, 1, 5)],
)
def test_identity_shortcut_subsamples_and_pads_with_zeros(channels, filters, strides, size):
    x = images(channels, size)
    expected = TorchPaddedIdentity(channels, filters, strides)(torch.tensor(x).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(padded(x, filters, strides), expected.permute(0, 2, 3, 1))


# (shortcut, input channels, filters, strides) -> the module that the shortcut should be.
BASIC = [
    ("A", 4, 8, 2, TorchPaddedIdentity(4, 8, 2)),
    ("A", 4, 4, 1, nn.Identity()),
    ("B", 4, 8, 2, TorchProjection(4, 8, 2)),
    ("B", 4, 8, 1, TorchProjection(4, 8, 1)),
    ("B", 4, 4, 1, nn.Identity()),
    ("C", 4, 4, 1, TorchProjection(4, 4, 1)),
    ("none", 4, 8, 2, None),
    ("none", 4, 4, 1, None),
    ("gated", 4, 8, 2, TorchGate(4, 8, 2)),
    ("gated", 4, 4, 1, TorchGate(4, 4, 1)),
]


@pytest.mark.parametrize(
    "shortcut, channels, filters, strides, torch_shortcut",
    BASIC,
    ids=[f"{shortcut}-{channels}to{filters}-stride{strides}" for shortcut, channels, filters, strides, _ in BASIC],
)
def test_basic_block_equals_pytorch(shortcut, channels, filters, strides, torch_shortcut):
    block = BasicBlock(filters, strides, shortcut=SHORTCUTS[shortcut], **PARTS)
    reference = TorchBlock(channels, [(filters, 3, strides), (filters, 3, 1)], torch_shortcut)
    check_against_torch(block, reference, images(channels))


# As above, with the stride placement in front; a bottleneck of 3 filters has 12 output channels.
BOTTLENECK = [
    ("v1", "A", 6, 2, TorchPaddedIdentity(6, 12, 2)),
    ("v1", "B", 6, 2, TorchProjection(6, 12, 2)),
    ("v1.5", "B", 6, 2, TorchProjection(6, 12, 2)),
    ("v1", "B", 12, 1, nn.Identity()),
    ("v1.5", "C", 12, 1, TorchProjection(12, 12, 1)),
    ("v1", "none", 6, 2, None),
]


@pytest.mark.parametrize(
    "placement, shortcut, channels, strides, torch_shortcut",
    BOTTLENECK,
    ids=[
        f"{placement}-{shortcut}-{channels}to12-stride{strides}"
        for placement, shortcut, channels, strides, _ in BOTTLENECK
    ],
)
def test_bottleneck_block_equals_pytorch(placement, shortcut, channels, strides, torch_shortcut):
    block = BottleneckBlock(3, strides, shortcut=SHORTCUTS[shortcut], stride_placement=placement, **PARTS)
    first, middle = (strides, 1) if placement == "v1" else (1, strides)
    reference = TorchBlock(channels, [(3, 1, first), (3, 3, middle), (12, 1, 1)], torch_shortcut)
    check_against_torch(block, reference, images(channels))


@pytest.mark.parametrize("block_type, channels", [(BasicBlock, 4), (BottleneckBlock, 8)])
@pytest.mark.extensive
def test_zero_initialised_last_norm_makes_the_block_its_shortcut(block_type, channels):
    def block(shortcut):
        filters = 2 * channels if block_type is BasicBlock else channels // 2
        return block_type(filters, 2, shortcut=SHORTCUTS[shortcut], zero_init_last_bn=True, **PARTS)

    x = images(channels)
    # This generator compiles in a third of the default one's time.
    variables = jax.jit(block("B").init)(jax.random.key(0, impl="rbg"), x)
    scales = {module: leaves["scale"] for module, leaves in variables["params"].items() if "scale" in leaves}
    last = "bn2" if block_type is BasicBlock else "bn3"
    assert [module for module, scale in scales.items() if not np.any(scale)] == [last]

    def output(shortcut):
        apply = jax.jit(partial(block(shortcut).apply, mutable=["batch_stats"]))
        return apply(variables, x)[0]

    identity = TorchPaddedIdentity(channels, 2 * channels, 2)(torch.tensor(x).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(output("A"), F.relu(identity).permute(0, 2, 3, 1))
    with pytest.raises(UserError, match="zero_init_last_bn is for blocks with a shortcut"):
        block("none").check()
    assert np.any(output("B"))


@pytest.mark.parametrize("block_type", [BasicBlock, BottleneckBlock])
def test_plain_and_option_a_blocks_have_no_shortcut_parameters(block_type):
    def names(shortcut):
        block = block_type(4, 2, shortcut=SHORTCUTS[shortcut], **PARTS)
        return set(jax.eval_shape(block.init, jax.random.key(0), images(4))["params"])

    assert names("none") == names("A") == names("B") - {"projection_conv", "projection_bn"}
    assert names("B") != names("A")


class Half(linen.Module):
    """An attention that halves everything."""

    @linen.compact
    def __call__(self, x):
        return x * self.param("half", lambda _: jnp.float32(0.5))


def residual_alone(x, residual, *_):
    return residual


def test_attention_rescales_the_residual_branch_and_the_activation_is_the_last():
    x = images(4)
    block = BasicBlock(4, 1, shortcut=residual_alone, attention=Half, **PARTS)
    variables = jax.jit(block.init)(jax.random.key(0, impl="rbg"), x)
    assert variables["params"]["attention"] == {"half": 0.5}

    @partial(jax.jit, static_argnums=0)
    def run(scale, half):
        changed = variables | {"params": variables["params"] | {"attention": {"half": half}}}
        ended = block.clone(activation=lambda x: scale * linen.relu(x))
        return ended.apply(changed, x, mutable=["batch_stats"])[0]

    np.testing.assert_allclose(run(1, 0.5), run(1, 1.0) / 2, rtol=1e-6)
    np.testing.assert_allclose(run(3, 1.0), 3 * run(1, 1.0), rtol=1e-4, atol=1e-4)  # Normalised in between.


def test_drop_path_leaves_whole_branches_out_and_keeps_their_mean():
    x = np.tile(images(4)[:1], (400, 1, 1, 1))
    block = BasicBlock(4, 1, shortcut=residual_alone, **PARTS)
    variables = jax.jit(block.init)(jax.random.key(0, impl="rbg"), x[:1])

    @jax.jit
    def run(rate, seed):
        return block.apply(variables, x, rate, mutable=["batch_stats"], rngs={"drop_path": jax.random.key(seed)})[0]

    whole, dropped = run(0.0, 0), run(0.25, 0)
    kept = np.abs(dropped).max(axis=(1, 2, 3)) > 0
    assert 0.65 < kept.mean() < 0.85  # Four standard errors are 0.09.
    np.testing.assert_allclose(dropped[kept], whole[kept] / 0.75, rtol=1e-5, atol=1e-5)
    assert np.any(run(0.25, 1) != dropped)
