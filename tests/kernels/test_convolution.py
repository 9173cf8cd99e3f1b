import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from resnet_jax.kernels.convolution import cpu_convolution, plain_convolution

torch = pytest.importorskip("torch")

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


def value_and_gradients(convolve, strides, padding, *window):
    """A function of (x, kernel, g): the output, and the gradients of its product with g."""

    def run(x, kernel, g):
        output, pullback = jax.vjp(lambda x, kernel: convolve(x, kernel, strides, padding, *window), x, kernel)
        return output, pullback(g)

    return jax.jit(run)


@pytest.mark.parametrize("size, strides, image", SHAPES)
def test_value_and_both_gradients_equal_the_plain_convolution(size, strides, image):
    padding = same_padding(size)
    x, kernel = draw((2, *image, 3), (size, size, 3, 5))
    (g,) = draw(plain_convolution(x, kernel, strides, padding).shape, seed=1)
    actual = value_and_gradients(cpu_convolution, strides, padding)(x, kernel, g)
    expected = value_and_gradients(plain_convolution, strides, padding)(x, kernel, g)
    assert_equal_to_rounding(actual, expected)


def test_gradients_with_different_padding_on_each_side():
    padding = ((0, 2), (1, 0))
    x, kernel = draw((2, 8, 9, 3), (3, 3, 3, 5))
    (g,) = draw(plain_convolution(x, kernel, 2, padding).shape, seed=1)
    actual = value_and_gradients(cpu_convolution, 2, padding)(x, kernel, g)
    expected = value_and_gradients(plain_convolution, 2, padding)(x, kernel, g)
    assert_equal_to_rounding(actual, expected)


@pytest.mark.parametrize("size, strides, image", [shape for shape in SHAPES if not shape.id.startswith("1x1")])
def test_every_convolution_of_a_training_step_is_in_canonical_form(size, strides, image):
    # The property that keeps gradients fast inside loops on CPU; JAX's own weight gradient does not have it.
    x, kernel = draw((2, *image, 3), (size, size, 3, 5))

    def loss(x, kernel):
        return jnp.sum(cpu_convolution(x, kernel, strides, same_padding(size)) ** 2)

    program = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, kernel))
    layouts = re.findall(r"ConvDimensionNumbers\(lhs_spec=(.*?), rhs_spec=(.*?), out_spec=(.*?\))\)", program)
    # JAX names (batch, channel, spatial) and (output, input, spatial): NHWC and HWIO.
    assert layouts == [("(0, 3, 1, 2)", "(3, 2, 0, 1)", "(0, 3, 1, 2)")] * 3


@pytest.mark.parametrize("strides", [1, 2])
def test_convolutions_of_1x1_are_products_of_matrices(strides):
    x, kernel = draw((2, 8, 7, 3), (1, 1, 3, 5))
    loss = lambda x, kernel: jnp.sum(cpu_convolution(x, kernel, strides, same_padding(1)) ** 2)  # noqa: E731
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

    actual, expected = gradient_of_gradient_norm(cpu_convolution), gradient_of_gradient_norm(plain_convolution)
    for a, e in zip(actual, expected, strict=True):
        assert np.abs(e).max() > 1e-4
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-5 * float(np.abs(e).max()))


def test_gradients_inside_scan_equal_those_of_unrolled_plain_convolutions():
    x, kernels = draw((2, 6, 6, 4), (3, 3, 3, 4, 4))
    kernels = kernels / 6

    def scanned(x, kernels):
        def step(x, kernel):
            return jnp.tanh(cpu_convolution(x, kernel, 1, same_padding(3))), None

        return lax.scan(step, x, kernels)[0]

    def unrolled(x, kernels):
        for kernel in kernels:
            x = jnp.tanh(plain_convolution(x, kernel, 1, same_padding(3)))
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
    actual = jax.vmap(value_and_gradients(cpu_convolution, 2, same_padding(3)), in_axes=(0, kernel_axis, 0))(
        x, kernel, g
    )
    one = value_and_gradients(plain_convolution, 2, same_padding(3))
    each = [one(x[i], kernel[i] if kernel_axis == 0 else kernel, g[i]) for i in range(3)]
    assert_equal_to_rounding(actual, jax.tree.map(lambda *leaves: jnp.stack(leaves), *each))


# (kernel size, stride, dilation, groups): of ResNeXt, of depthwise and of dilated networks.
GROUPED = [
    (size, strides, dilation, groups)
    for groups in (1, 2, 32)
    for size, strides, dilation in [(3, 1, 1), (3, 2, 1), (3, 1, 2), (3, 2, 3), (1, 1, 1), (1, 2, 1), (2, 2, 2)]
    if groups > 1 or dilation > 1
]


@pytest.mark.parametrize("size, strides, dilation, groups", GROUPED)
@pytest.mark.extensive
def test_grouped_and_dilated_convolutions_equal_the_plain_ones(size, strides, dilation, groups):
    padding = ((dilation * (size // 2),) * 2, (dilation * (size // 2), 0))
    inputs, outputs = (64, 32) if groups == 32 else (6, 10)
    x, kernel = draw((2, 9, 8, inputs), (size, size, inputs // groups, outputs))
    (g,) = draw(plain_convolution(x, kernel, strides, padding, groups, dilation).shape, seed=1)
    actual = value_and_gradients(cpu_convolution, strides, padding, groups, dilation)(x, kernel, g)
    expected = value_and_gradients(plain_convolution, strides, padding, groups, dilation)(x, kernel, g)
    assert_equal_to_rounding(actual, expected)


def test_plain_grouped_and_dilated_convolutions_are_pytorchs():
    x, kernel = draw((2, 9, 8, 6), (3, 3, 3, 10))
    expected = torch.nn.functional.conv2d(
        torch.tensor(np.asarray(x)).permute(0, 3, 1, 2),
        torch.tensor(np.asarray(kernel)).permute(3, 2, 0, 1),
        stride=2,
        padding=2,
        dilation=2,
        groups=2,
    )
    actual = plain_convolution(x, kernel, 2, ((2, 2), (2, 2)), 2, 2)
    assert_equal_to_rounding(actual, expected.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("size, dilation", [(3, 1), (3, 2), (1, 1)])
def test_gradients_of_grouped_convolutions_have_no_batch_groups_and_are_canonical(size, dilation):
    x, kernel = draw((2, 8, 8, 8), (size, size, 4, 6))
    pad = (dilation * (size // 2),) * 2

    def loss(x, kernel):
        return jnp.sum(cpu_convolution(x, kernel, 2, (pad, pad), 2, dilation) ** 2)

    program = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, kernel))
    assert set(re.findall(r"batch_group_count=(\d+)", program)) <= {"1"}
    layouts = re.findall(r"ConvDimensionNumbers\(lhs_spec=(.*?), rhs_spec=(.*?), out_spec=(.*?\))\)", program)
    convolutions = 0 if size == 1 else 2
    assert layouts == [("(0, 3, 1, 2)", "(3, 2, 0, 1)", "(0, 3, 1, 2)")] * convolutions


def test_second_order_gradient_of_a_grouped_convolution_equals_that_of_the_plain_one():
    x, kernel = draw((1, 5, 5, 4), (3, 3, 2, 4))

    def curvature(convolve):
        loss = lambda k: jnp.mean(jnp.tanh(convolve(x, k, 2, same_padding(3), 2)) ** 2)  # noqa: E731
        return jax.jit(jax.grad(lambda k: jnp.sum(jax.grad(loss)(k) ** 2)))(kernel)

    assert_equal_to_rounding(curvature(cpu_convolution), curvature(plain_convolution))


def test_arrays_of_symbolic_shapes_get_the_plain_convolution():
    (batch,) = jax.export.symbolic_shape("batch")
    x = jax.ShapeDtypeStruct((batch, 8, 8, 3), jnp.float32)
    kernel = jax.ShapeDtypeStruct((1, 1, 3, 5), jnp.float32)
    convolve = jax.jit(lambda x, k: cpu_convolution(x, k, 1, same_padding(1), use_onednn=True))
    assert "convolution" in jax.export.export(convolve)(x, kernel).mlir_module()
