import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax

from resnet_jax.models.conv import Conv, conv2d, he_normal

# (kernel size, stride) of every convolution in Table 1 and section 4.2, each on images of odd and even sizes.
SHAPES = [
    pytest.param(size, strides, image, id=f"{size}x{size}-stride{strides}-{image[0]}x{image[1]}")
    for size, strides, images in [
        (3, 1, [(8, 8), (7, 6)]),
        (3, 2, [(8, 8), (7, 7), (8, 7)]),
        (1, 1, [(8, 7)]),
        (1, 2, [(8, 8), (7, 7), (8, 7)]),
        (7, 2, [(16, 16), (15, 15), (16, 15)]),
    ]
    for image in images
]


@pytest.fixture(autouse=True)
def canonical_form(monkeypatch):
    """The form that CPUs get, on whatever backend the tests run."""
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")


def plain(x, kernel, strides, padding):
    return lax.conv_general_dilated(x, kernel, (strides, strides), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def draw(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def same_padding(size):
    return ((size // 2, size // 2), (size // 2, size // 2))


def assert_equal_to_rounding(actual, expected):
    """To a few float32 roundings of the sums' largest term."""
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=2e-6 * max(1.0, float(np.abs(e).max()))),
        actual,
        expected,
    )


def value_and_gradients(convolve, strides, padding):
    """A function of (x, kernel, g): the output, and the gradients of its product with g."""

    def run(x, kernel, g):
        output, pullback = jax.vjp(lambda x, kernel: convolve(x, kernel, strides, padding), x, kernel)
        return output, pullback(g)

    return jax.jit(run)


@pytest.mark.parametrize("size, strides, image", SHAPES)
def test_value_and_both_gradients_equal_the_plain_convolution(size, strides, image):
    padding = same_padding(size)
    x, kernel = draw((2, *image, 3), (size, size, 3, 5))
    (g,) = draw(plain(x, kernel, strides, padding).shape, seed=1)
    actual = value_and_gradients(conv2d, strides, padding)(x, kernel, g)
    expected = value_and_gradients(plain, strides, padding)(x, kernel, g)
    assert_equal_to_rounding(actual, expected)


def test_gradients_with_different_padding_on_each_side():
    padding = ((0, 2), (1, 0))
    x, kernel = draw((2, 8, 9, 3), (3, 3, 3, 5))
    (g,) = draw(plain(x, kernel, 2, padding).shape, seed=1)
    actual = value_and_gradients(conv2d, 2, padding)(x, kernel, g)
    expected = value_and_gradients(plain, 2, padding)(x, kernel, g)
    assert_equal_to_rounding(actual, expected)


@pytest.mark.parametrize("size, strides, image", [shape for shape in SHAPES if not shape.id.startswith("1x1")])
def test_every_convolution_of_a_training_step_is_in_canonical_form(size, strides, image):
    # The property that keeps gradients fast inside loops on CPU; JAX's own weight gradient does not have it.
    x, kernel = draw((2, *image, 3), (size, size, 3, 5))

    def loss(x, kernel):
        return jnp.sum(conv2d(x, kernel, strides, same_padding(size)) ** 2)

    program = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, kernel))
    layouts = re.findall(r"ConvDimensionNumbers\(lhs_spec=(.*?), rhs_spec=(.*?), out_spec=(.*?\))\)", program)
    # JAX names (batch, channel, spatial) and (output, input, spatial): NHWC and HWIO.
    assert layouts == [("(0, 3, 1, 2)", "(3, 2, 0, 1)", "(0, 3, 1, 2)")] * 3


@pytest.mark.parametrize("strides", [1, 2])
def test_convolutions_of_1x1_are_products_of_matrices(strides):
    x, kernel = draw((2, 8, 7, 3), (1, 1, 3, 5))
    loss = lambda x, kernel: jnp.sum(conv2d(x, kernel, strides, same_padding(1)) ** 2)  # noqa: E731
    program = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, kernel))
    assert "conv_general_dilated" not in program and program.count("dot_general[") == 3


@pytest.mark.parametrize("strides", [1, 2])
def test_second_order_gradient_equals_that_of_the_plain_convolution(strides):
    x, kernel = draw((2, 6, 6, 2), (3, 3, 2, 3))

    def gradient_of_gradient_norm(convolve):
        def loss(x, kernel):
            return jnp.mean(jnp.tanh(convolve(x, kernel, strides, same_padding(3))) ** 2)

        def gradient_norm(x, kernel):
            return sum(jnp.sum(g**2) for g in jax.grad(loss, argnums=(0, 1))(x, kernel))

        return jax.jit(jax.grad(gradient_norm, argnums=(0, 1)))(x, kernel)

    actual, expected = gradient_of_gradient_norm(conv2d), gradient_of_gradient_norm(plain)
    for a, e in zip(actual, expected, strict=True):
        assert np.abs(e).max() > 1e-4
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-5 * float(np.abs(e).max()))


def test_gradients_inside_scan_equal_those_of_unrolled_plain_convolutions():
    x, kernels = draw((2, 6, 6, 4), (3, 3, 3, 4, 4))
    kernels = kernels / 6

    def scanned(x, kernels):
        return lax.scan(lambda x, kernel: (jnp.tanh(conv2d(x, kernel, 1, same_padding(3))), None), x, kernels)[0]

    def unrolled(x, kernels):
        for kernel in kernels:
            x = jnp.tanh(plain(x, kernel, 1, same_padding(3)))
        return x

    def run(network):
        return jax.jit(jax.value_and_grad(lambda *inputs: jnp.sum(network(*inputs) ** 2), argnums=(0, 1)))(x, kernels)

    (actual, actual_gradients), (expected, expected_gradients) = run(scanned), run(unrolled)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    for a, e in zip(actual_gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-5 * float(np.abs(e).max()))


@pytest.mark.parametrize("kernel_axis", [0, None], ids=["kernel-each", "one-kernel"])
def test_vmap_equals_a_loop_over_the_plain_convolution(kernel_axis):
    x, kernels = draw((3, 2, 7, 7, 2), (3, 3, 3, 2, 4))
    kernel = kernels if kernel_axis == 0 else kernels[0]
    (g,) = draw((3, 2, 4, 4, 4), seed=1)
    actual = jax.vmap(value_and_gradients(conv2d, 2, same_padding(3)), in_axes=(0, kernel_axis, 0))(x, kernel, g)
    one = value_and_gradients(plain, 2, same_padding(3))
    each = [one(x[i], kernel[i] if kernel_axis == 0 else kernel, g[i]) for i in range(3)]
    assert_equal_to_rounding(actual, jax.tree.map(lambda *leaves: jnp.stack(leaves), *each))


def test_other_backends_get_the_plain_convolution_with_forward_mode_gradients(monkeypatch):
    x, kernel = draw((1, 4, 4, 2), (3, 3, 2, 2))

    def forward_mode():
        return jax.jvp(lambda x: conv2d(x, kernel, 1, same_padding(3)), (x,), (jnp.ones_like(x),))[1]

    with pytest.raises(TypeError, match="custom_vjp"):
        forward_mode()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert_equal_to_rounding(forward_mode(), plain(jnp.ones_like(x), kernel, 1, same_padding(3)))


@pytest.mark.parametrize("size, strides, image", SHAPES)
def test_conv_layer_places_its_windows_as_pytorch_does(size, strides, image):
    x, kernel = draw((2, *image, 3), (size, size, 3, 5))
    actual = Conv(5, size, strides).apply({"params": {"kernel": kernel}}, x)
    expected = torch.nn.functional.conv2d(
        torch.tensor(np.asarray(x)).permute(0, 3, 1, 2),
        torch.tensor(np.asarray(kernel)).permute(3, 2, 0, 1),
        stride=strides,
        padding=size // 2,
    )
    assert_equal_to_rounding(actual, expected.permute(0, 2, 3, 1).numpy())


def test_conv_layer_computes_in_its_dtype_and_keeps_its_kernel_in_float32():
    x, _ = draw((2, 6, 6, 3), (1,))
    layer = Conv(4, 3, dtype=jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x)
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(layer.apply(v, x).astype(jnp.float32))))(variables)
    assert variables["params"]["kernel"].dtype == gradient["params"]["kernel"].dtype == jnp.float32
    assert layer.apply(variables, x).dtype == jnp.bfloat16
    # Eight significant bits: inputs, kernel and output are each rounded by at most 2**-9 of themselves.
    expected = Conv(4, 3).apply(variables, x)
    np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=0, atol=2**-6 * float(expected.max()))


@pytest.mark.parametrize("shape, fan_in", [((3, 3, 64, 256), 3 * 3 * 64), ((512, 300), 512)])
def test_he_normal_is_an_untruncated_normal_with_variance_two_over_fan_in(shape, fan_in):
    weights = np.asarray(he_normal(jax.random.key(0), shape), np.float64)
    std = np.sqrt(2 / fan_in)
    # The standard errors of mean and standard deviation are std / sqrt(n) and std / sqrt(2 n).
    assert abs(weights.mean()) < 4 * std / np.sqrt(weights.size)
    assert abs(weights.std() - std) < 4 * std / np.sqrt(2 * weights.size)
    # A truncated normal of this standard deviation ends at 2.3 of them.
    assert np.abs(weights).max() > 3.5 * std
