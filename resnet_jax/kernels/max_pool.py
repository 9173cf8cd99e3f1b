"""The max-pool of the ImageNet stem: 3x3 with stride 2, padded by 1. JAX's own, and a faster one for CPUs."""

import jax
import jax.numpy as jnp
from jax import lax


def plain_max_pool(x: jax.Array) -> jax.Array:
    """(N, H, W, C) to (N, ceil(H / 2), ceil(W / 2), C)."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))


def cpu_max_pool(x: jax.Array) -> jax.Array:
    """The same, with reverse-mode gradients only.

    XLA's own gradient runs on one core of a CPU, and its forward pass is slow there, so both are elementwise operations
    on shifted slices. Arrays of symbolic shapes (``jax.export.symbolic_shape``) get the plain operation.
    """
    return _max_pool_of_slices(x) if all(isinstance(size, int) for size in x.shape) else plain_max_pool(x)


@jax.custom_vjp
def _max_pool_of_slices(x: jax.Array) -> jax.Array:
    first, *others = _slices(x)
    for part in others:
        first = jnp.maximum(first, part)
    return first


def _slices(x: jax.Array) -> list[jax.Array]:
    """What lies at each of the 9 places of every window, row by row; outside of the image the least value there is."""
    rows, columns = (-(-size // 2) for size in x.shape[1:3])
    # On the right and below, also what an odd size lacks to an even one is padded.
    after = (2 * rows + 1 - x.shape[1], 2 * columns + 1 - x.shape[2])
    padded = lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), (1, after[0], 0), (1, after[1], 0), (0, 0, 0)))
    return [padded[:, i : i + 2 * rows : 2, j : j + 2 * columns : 2] for i in range(3) for j in range(3)]


def _forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y = _max_pool_of_slices(x)
    return y, (x, y)


def _backward(residuals: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array]:
    x, y = residuals
    # Of equal values the first one of a window gets its gradient, as in XLA and in PyTorch.
    winner = jnp.zeros(y.shape, jnp.int8)
    for place, part in reversed(list(enumerate(_slices(x)))):
        winner = jnp.where(part == y, jnp.int8(place), winner)

    def won(i: int, j: int) -> jax.Array:
        """The gradient of the windows that place (i, j) has won, at the windows, or at those before for i or j = 0."""
        gradient = jnp.where(winner == 3 * i + j, g, 0)
        down, right = int(i == 0), int(j == 0)
        return jnp.pad(gradient, ((0, 0), (0, down), (0, right), (0, 0)))[:, down:, right:]

    # A pixel of an even row (from 0) is in the middle row of one window; one of an odd row is in the last row of that
    # window and in the first of the next. So it is with columns.
    quarters = [
        [sum(won(i, j) for i in rows for j in columns) for columns in ((1,), (2, 0))] for rows in ((1,), (2, 0))
    ]
    n, h, w, c = y.shape
    whole = jnp.stack([jnp.stack(row, axis=3) for row in quarters], axis=2).reshape(n, 2 * h, 2 * w, c)
    return (whole[:, : x.shape[1], : x.shape[2]],)


_max_pool_of_slices.defvjp(_forward, _backward)
