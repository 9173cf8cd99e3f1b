"""The fully-convolutional form of a network, on photographs of any size in one compiled program (section 3.4).

Photographs are laid at the top left of a canvas. The network pads with zeros, so it computes on a photograph just what
it would alone, as long as every layer reads zeros beyond the photograph's edge.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.models import Model
from resnet_jax.models.conv import Conv
from resnet_jax.models.norm import BatchNorm


def dense_logits(model: Model, variables: Any, images: jax.Array, sizes: jax.Array) -> jax.Array:
    """Logits (N, num_classes) averaged over the positions of each photograph, float32.

    Args:
        model: a ``ResNet``; other networks have no features to average.
        images: normalised, (N, H, W, 3); H and W must be multiples of the network's stride, 32 with the ImageNet stem.
        sizes: (N, 2) int32, the height and width that each photograph fills from the top left.

    The class scores of every position of the last feature map are averaged, which is what the network's own pooling and
    classifier do on a larger map.
    """
    canvas = images.shape[1:3]

    def inside(shape: tuple[int, ...]) -> jax.Array:
        """(N, h, w, 1): 1 where a map of this shape belongs to the photograph. Strides round sizes up."""
        strides = [whole // part for whole, part in zip(canvas, shape[1:3], strict=True)]
        rows, columns = (
            jnp.arange(shape[i + 1]) < -(-sizes[:, i, None] // strides[i])  # (N, h) and (N, w)
            for i in range(2)
        )
        return (rows[:, :, None] & columns[:, None, :])[..., None]

    def keep_inside(x: jax.Array) -> jax.Array:
        return jnp.where(inside(x.shape), x, 0)

    def masked(next_call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        # The stem's pooling reads what normalisation makes, and writes a row and a column beyond the edge.
        if isinstance(context.module, Conv):
            return next_call(keep_inside(args[0]), *args[1:], **kwargs)
        out = next_call(*args, **kwargs)
        return keep_inside(out) if isinstance(context.module, BatchNorm) else out

    with nn.intercept_methods(masked):
        maps: Any = model.apply(variables, images, train=False, features=True)
    last = keep_inside(maps[max(maps)].astype(jnp.float32))
    pooled = last.sum(axis=(1, 2)) / inside(last.shape).sum(axis=(1, 2))
    head = variables["params"]["head"]
    return pooled @ head["kernel"] + head["bias"]
