"""Pooling that shrinks a feature map to half its size: (N, H, W, C) to (N, ceil(H / 2), ceil(W / 2), C).

Only ``WholeMeanPool`` rounds down.

A stride of 2 takes every second pixel, of which the next layer then depends on where an edge happens to fall. These
average before they do. ``ANTIALIAS`` has those that blocks can use in place of a stride.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.kernels import PLAIN, Kernels


class MeanPool(nn.Module):
    """The mean of 2x2 pixels, or of those that there are in the last row and column of a map of an odd size."""

    dense: ClassVar[str] = "masked_window_mean"

    def __call__(self, x: jax.Array) -> jax.Array:
        for axis in (1, 2):
            if x.shape[axis] % 2:  # The last one is alone, so it counts twice.
                x = jnp.concatenate([x, lax.slice_in_dim(x, -1, None, axis=axis)], axis)
        return _mean_of_pairs(x)


class WholeMeanPool(nn.Module):
    """The mean of 2x2 pixels, without the last row and column of a map of an odd size: to floor(H / 2), floor(W / 2).

    timm's anti-aliased stems have it. Its blocks, too, but their shortcuts round up, so that they take even maps only;
    blocks here use ``MeanPool``, which is the same for those.
    """

    dense: ClassVar[str] = "rounds_down"

    def __call__(self, x: jax.Array) -> jax.Array:
        return _mean_of_pairs(x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2])


def _mean_of_pairs(x: jax.Array) -> jax.Array:
    """Of rows, then of columns; both are even. Elementwise, since the gradient of a window's sum is slow on CPUs."""
    for axis in (1, 2):
        first, second = (lax.slice_in_dim(x, start, None, 2, axis) for start in (0, 1))
        x = (first + second) / 2
    return x


class BlurPool(nn.Module):
    """Every second pixel of the map blurred by [1, 2, 1] / 4 in both directions, with reflected edges.

    Zhang, "Making Convolutional Networks Shift-Invariant Again" (arXiv 1904.11486, section 3.2), filter "Tri-3".
    """

    dense: ClassVar[str] = "reflect_input"

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        x = (x[:, :-2:2] + 2 * x[:, 1:-1:2] + x[:, 2::2]) / 4
        return (x[:, :, :-2:2] + 2 * x[:, :, 1:-1:2] + x[:, :, 2::2]) / 4


class MaxOfNeighbours(nn.Module):
    """The largest value of the 3x3 pixels around each: (N, H, W, C) to the same. A ``BlurPool`` follows it."""

    dense: ClassVar[str] = "masked_max"

    def __call__(self, x: jax.Array) -> jax.Array:
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")


class ZeroPaddedMaxPool(nn.Module):
    """3x3 with stride 2 as ``layers.MaxPool``, but what is beyond the edge counts as 0.

    So BiT has it (arXiv 1912.11370), whose stem has no ReLU: its values may all be below 0.
    """

    dense: ClassVar[str] = "mask_input"

    kernels: Kernels = PLAIN

    def __call__(self, x: jax.Array) -> jax.Array:
        height, width = (-(-size // 2) for size in x.shape[1:3])
        # The pool pads by 1 of its own. After two zeros its second window is the first one that is wanted.
        x = jnp.pad(x, ((0, 0), (2, 1), (2, 1), (0, 0)))
        return self.kernels.max_pool(x)[:, 1 : 1 + height, 1 : 1 + width]


ANTIALIAS: dict[str, Callable[..., Any] | None] = {"none": None, "mean": MeanPool, "blur": BlurPool}
