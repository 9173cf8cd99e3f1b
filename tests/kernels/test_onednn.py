import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from resnet_jax.kernels import convolution, fast_kernels, onednn
from resnet_jax.kernels.convolution import plain_convolution

# (image, kernel, stride) of the kinds of convolution in Table 1 and section 4.2, with odd sizes and few channels.
SHAPES = [
    ((4, 9, 8, 3), (3, 3, 3, 16), 1),
    ((4, 8, 8, 16), (3, 3, 16, 16), 1),
    ((4, 8, 7, 16), (3, 3, 16, 32), 2),
    ((2, 7, 7, 5), (3, 3, 5, 7), 2),
    ((2, 17, 16, 3), (7, 7, 3, 8), 2),
    ((4, 8, 8, 16), (1, 1, 16, 64), 1),
    ((4, 9, 9, 64), (1, 1, 64, 32), 2),
    ((1, 1, 1, 1), (1, 1, 1, 1), 1),
]


cpu_convolution = fast_kernels("cpu", num_devices=1).convolution


@pytest.fixture(autouse=True)
def onednn_is_used(monkeypatch):
    """For convolutions of any size."""
    if onednn.library() is None:
        pytest.skip('needs oneDNN: pip install ".[cpu]"')
    monkeypatch.setattr(convolution, "_LEAST_MULTIPLY_ADDS", 0)


def draw(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def padding(kernel):
    return ((kernel[0] // 2,) * 2, (kernel[1] // 2,) * 2)


def assert_equal_to_rounding(actual, expected):
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=2e-6 * max(1.0, float(np.abs(e).max()))),
        actual,
        expected,
    )


def both(convolve, image, kernel, strides, *window):
    x, k = draw(image, kernel)
    y, pullback = jax.vjp(jax.jit(lambda x, k: convolve(x, k, strides, padding(kernel), *window)), x, k)
    (g,) = draw(y.shape, seed=1)
    return y, pullback(g)


@pytest.mark.parametrize("image, kernel, strides", SHAPES)
def test_outputs_and_gradients_equal_the_plain_convolutions(image, kernel, strides):
    assert_equal_to_rounding(
        both(cpu_convolution, image, kernel, strides), both(plain_convolution, image, kernel, strides)
    )


@pytest.mark.parametrize("groups, channels, outputs", [(1, 3, 4), (2, 6, 10), (32, 64, 32), (8, 8, 8)])
@pytest.mark.parametrize("size, strides, dilation", [(3, 1, 1), (3, 2, 1), (3, 2, 2), (1, 1, 1)])
@pytest.mark.extensive
def test_grouped_and_dilated_convolutions_equal_the_plain_ones(
    groups, channels, outputs, size, strides, dilation, monkeypatch
):
    seen = []
    forward = onednn.forward
    monkeypatch.setattr(onednn, "forward", lambda *arguments: seen.append(1) or forward(*arguments))
    image, kernel = (2, 9, 8, channels), (size, size, channels // groups, outputs)
    actual = both(cpu_convolution, image, kernel, strides, groups, dilation)
    assert seen
    assert_equal_to_rounding(actual, both(plain_convolution, image, kernel, strides, groups, dilation))


def test_targets_of_other_groups_or_dilations_have_other_names():
    geometry = onednn.Geometry((1, 8, 8, 4), (3, 3, 2, 4), 1, ((1, 1), (1, 1)), groups=2)
    names = {onednn._forward_target(geometry._replace(**other))[0] for other in ({}, {"dilation": 2})}
    names.add(onednn._forward_target(geometry._replace(image=(1, 8, 8, 2), groups=1))[0])
    assert len(names) == 3


def test_it_is_onednn_that_computes(monkeypatch):
    seen = []
    execute = onednn._execute
    monkeypatch.setattr(onednn, "_execute", lambda *arguments: seen.append(1) or execute(*arguments))
    both(cpu_convolution, *SHAPES[1])
    assert len(seen) == 6  # Three convolutions, and a reordering of the kernel for each.


def test_paddings_may_differ_from_side_to_side():
    x, kernel = draw((2, 8, 9, 4), (3, 3, 4, 4))
    pad = ((0, 2), (1, 0))
    assert_equal_to_rounding(cpu_convolution(x, kernel, 1, pad), plain_convolution(x, kernel, 1, pad))


def test_loops_maps_and_recomputation_work():
    x, kernel = draw((2, 8, 8, 4), (3, 3, 4, 4))
    kernel = kernel / 6  # Saturated, the tanh would magnify roundings.
    pad = padding(kernel.shape)

    def looped(convolve):
        def loss(kernel):
            body = jax.checkpoint(lambda y, _: (jnp.tanh(convolve(y, kernel, 1, pad)), None))
            return jnp.sum(lax.scan(body, x, length=3)[0] ** 2)

        return jax.jit(jax.value_and_grad(loss))(kernel)

    assert_equal_to_rounding(looped(cpu_convolution), looped(plain_convolution))
    kernels = jnp.stack([kernel, 2 * kernel])
    mapped = jax.jit(jax.vmap(lambda k: cpu_convolution(x, k, 1, pad)))(kernels)
    assert_equal_to_rounding(mapped, jnp.stack([plain_convolution(x, k, 1, pad) for k in kernels]))


def test_gradients_have_gradients():
    x, kernel = draw((1, 5, 5, 2), (3, 3, 2, 2))

    def curvature(convolve):
        loss = lambda k: jnp.sum(jnp.tanh(convolve(x, k, 2, ((1, 1), (1, 1)))) ** 2)  # noqa: E731
        return jax.grad(lambda k: jnp.sum(jax.grad(loss)(k) ** 2))(kernel)

    assert_equal_to_rounding(curvature(cpu_convolution), curvature(plain_convolution))


def test_threads_may_compute_at_a_time():
    from concurrent.futures import ThreadPoolExecutor

    image, shape, strides = SHAPES[2]
    x, kernel = draw(image, shape)
    compute = jax.jit(lambda x, k: cpu_convolution(x, k, strides, padding(shape)))
    inputs = [x * factor for factor in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: np.array(compute(x, kernel)), inputs * 4))
    for x, y in zip(inputs * 4, found, strict=True):
        assert_equal_to_rounding(y, plain_convolution(x, kernel, strides, padding(shape)))


def test_threads_that_come_first_share_an_engine(monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(onednn, "_created", lambda *arguments: time.sleep(0.05) or object())
    monkeypatch.setattr(onednn, "_made_engine", functools.cache(onednn._made_engine.__wrapped__))
    with ThreadPoolExecutor(2) as pool:
        first, second = (pool.submit(onednn._engine) for _ in range(2))
    assert first.result() is second.result()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_failure_is_an_error_of_the_program(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no such primitive")

    monkeypatch.setattr(onednn, "_execute", fail)
    x, kernel = draw((1, 5, 6, 2), (3, 3, 2, 2))
    with pytest.raises(jax.errors.JaxRuntimeError, match="no such primitive"):
        jax.block_until_ready(cpu_convolution(x, kernel, 1, ((1, 1), (1, 1))))


@pytest.mark.parametrize("what", ["small", "bfloat16", "several devices", "another platform", "no library"])
def test_where_it_would_not_pay_or_work_xla_computes(monkeypatch, what):
    monkeypatch.setattr(onednn, "forward", None)
    x, kernel = draw((2, 8, 8, 4), (3, 3, 4, 4))
    kernels = fast_kernels("gpu" if what == "another platform" else "cpu", 8 if what == "several devices" else 1)
    if what == "small":
        monkeypatch.setattr(convolution, "_LEAST_MULTIPLY_ADDS", 2 * 8 * 8 * 9 * 4 * 4 + 1)
    if what == "bfloat16":
        x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    if what == "no library":
        monkeypatch.setattr(onednn, "library", lambda: None)
    pad = padding(kernel.shape)
    assert_equal_to_rounding(
        kernels.convolution(x, kernel, 1, pad).astype(jnp.float32),
        plain_convolution(x, kernel, 1, pad).astype(jnp.float32),
    )


def test_waiting_threads_do_not_spin_and_the_environment_is_left_as_it_was(monkeypatch):
    import os

    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    seen = []
    monkeypatch.setattr(onednn, "_candidates", lambda: seen.append(os.environ["OMP_WAIT_POLICY"]) or [])
    assert onednn.library.__wrapped__() is None
    assert seen == ["passive"] and "OMP_WAIT_POLICY" not in os.environ
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert onednn.library.__wrapped__() is None
    assert seen == ["passive", "active"] and os.environ["OMP_WAIT_POLICY"] == "active"
