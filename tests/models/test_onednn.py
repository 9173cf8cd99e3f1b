import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from resnet_jax.models import conv, onednn
from resnet_jax.models.conv import conv2d

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


@pytest.fixture(autouse=True)
def onednn_is_used(monkeypatch):
    """For convolutions of any size, although the tests see eight devices."""
    if onednn.library() is None:
        pytest.skip('needs oneDNN: pip install ".[cpu]"')
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(conv, "_LEAST_MULTIPLY_ADDS", 0)


def draw(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def padding(kernel):
    return ((kernel[0] // 2,) * 2, (kernel[1] // 2,) * 2)


def plain(x, kernel, strides, pad):
    return lax.conv_general_dilated(x, kernel, (strides, strides), pad, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def assert_equal_to_rounding(actual, expected):
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=2e-6 * max(1.0, float(np.abs(e).max()))),
        actual,
        expected,
    )


def both(convolve, image, kernel, strides):
    x, k = draw(image, kernel)
    y, pullback = jax.vjp(jax.jit(lambda x, k: convolve(x, k, strides, padding(kernel))), x, k)
    (g,) = draw(y.shape, seed=1)
    return y, pullback(g)


@pytest.mark.parametrize("image, kernel, strides", SHAPES)
def test_outputs_and_gradients_equal_the_plain_convolutions(image, kernel, strides):
    assert_equal_to_rounding(both(conv2d, image, kernel, strides), both(plain, image, kernel, strides))


def test_it_is_onednn_that_computes(monkeypatch):
    seen = []
    execute = onednn._execute
    monkeypatch.setattr(onednn, "_execute", lambda *arguments: seen.append(1) or execute(*arguments))
    both(conv2d, *SHAPES[1])
    assert len(seen) == 6  # Three convolutions, and a reordering of the kernel for each.


def test_paddings_may_differ_from_side_to_side():
    x, kernel = draw((2, 8, 9, 4), (3, 3, 4, 4))
    pad = ((0, 2), (1, 0))
    assert_equal_to_rounding(conv2d(x, kernel, 1, pad), plain(x, kernel, 1, pad))


def test_loops_maps_and_recomputation_work():
    x, kernel = draw((2, 8, 8, 4), (3, 3, 4, 4))
    pad = padding(kernel.shape)

    def looped(convolve):
        def loss(kernel):
            body = jax.checkpoint(lambda y, _: (jnp.tanh(convolve(y, kernel, 1, pad)), None))
            return jnp.sum(lax.scan(body, x, length=3)[0] ** 2)

        return jax.jit(jax.value_and_grad(loss))(kernel)

    assert_equal_to_rounding(looped(conv2d), looped(plain))
    kernels = jnp.stack([kernel, 2 * kernel])
    mapped = jax.jit(jax.vmap(lambda k: conv2d(x, k, 1, pad)))(kernels)
    assert_equal_to_rounding(mapped, jnp.stack([plain(x, k, 1, pad) for k in kernels]))


def test_gradients_have_gradients():
    x, kernel = draw((1, 5, 5, 2), (3, 3, 2, 2))

    def curvature(convolve):
        loss = lambda k: jnp.sum(jnp.tanh(convolve(x, k, 2, ((1, 1), (1, 1)))) ** 2)  # noqa: E731
        return jax.grad(lambda k: jnp.sum(jax.grad(loss)(k) ** 2))(kernel)

    assert_equal_to_rounding(curvature(conv2d), curvature(plain))


def test_threads_may_compute_at_a_time():
    from concurrent.futures import ThreadPoolExecutor

    image, shape, strides = SHAPES[2]
    x, kernel = draw(image, shape)
    compute = jax.jit(lambda x, k: conv2d(x, k, strides, padding(shape)))
    inputs = [x * factor for factor in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: np.array(compute(x, kernel)), inputs * 4))
    for x, y in zip(inputs * 4, found, strict=True):
        assert_equal_to_rounding(y, plain(x, kernel, strides, padding(shape)))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_failure_is_an_error_of_the_program(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no such primitive")

    monkeypatch.setattr(onednn, "_execute", fail)
    x, kernel = draw((1, 5, 6, 2), (3, 3, 2, 2))
    with pytest.raises(jax.errors.JaxRuntimeError, match="no such primitive"):
        jax.block_until_ready(conv2d(x, kernel, 1, ((1, 1), (1, 1))))


@pytest.mark.parametrize("what", ["small", "bfloat16", "several devices", "another backend", "no library"])
def test_where_it_would_not_pay_or_work_xla_computes(monkeypatch, what):
    monkeypatch.setattr(onednn, "forward", None)
    x, kernel = draw((2, 8, 8, 4), (3, 3, 4, 4))
    if what == "small":
        monkeypatch.setattr(conv, "_LEAST_MULTIPLY_ADDS", 2 * 8 * 8 * 9 * 4 * 4 + 1)
    if what == "bfloat16":
        x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    if what == "several devices":
        monkeypatch.setattr(jax, "device_count", lambda: 8)
    if what == "another backend":
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    if what == "no library":
        monkeypatch.setattr(onednn, "library", lambda: None)
    pad = padding(kernel.shape)
    assert_equal_to_rounding(
        conv2d(x, kernel, 1, pad).astype(jnp.float32), plain(x, kernel, 1, pad).astype(jnp.float32)
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
