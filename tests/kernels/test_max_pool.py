import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.kernels.max_pool import cpu_max_pool, plain_max_pool

torch = pytest.importorskip("torch")


def draw(height, width, seed=0):
    """Activations after a ReLU, of few levels: many windows hold their maximum more than once."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(np.maximum(rng.integers(-3, 4, (2, height, width, 3)), 0), jnp.float32)


@pytest.mark.parametrize("max_pool", [pytest.param(plain_max_pool, marks=pytest.mark.extensive), cpu_max_pool])
@pytest.mark.parametrize(
    "size", [(7, 9), (1, 1), (2, 3), *(pytest.param(even, marks=pytest.mark.extensive) for even in ((8, 8), (6, 5)))]
)
def test_outputs_and_gradients_are_pytorchs(size, max_pool):
    x = draw(*size)
    y, pullback = jax.vjp(max_pool, x)
    g = jax.random.normal(jax.random.key(1), y.shape)

    there = torch.from_numpy(np.array(x)).permute(0, 3, 1, 2).requires_grad_()
    pooled = torch.nn.functional.max_pool2d(there, 3, 2, 1)
    pooled.backward(torch.from_numpy(np.array(g)).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(y, pooled.detach().permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(pullback(g)[0], there.grad.permute(0, 2, 3, 1).numpy(), atol=1e-6)


def test_gradients_have_gradients():
    x = draw(6, 6) + 0.01 * jax.random.uniform(jax.random.key(3), (2, 6, 6, 3))  # No two values are equal.
    weights = jax.random.normal(jax.random.key(2), (2, 3, 3, 3))

    def slope(pool):
        loss = lambda x: jnp.sum(weights * pool(x) ** 2)  # noqa: E731
        return jax.grad(lambda x: jnp.sum(jax.grad(loss)(x) ** 2))(x)

    np.testing.assert_allclose(slope(cpu_max_pool), slope(plain_max_pool), rtol=1e-5, atol=1e-5)
