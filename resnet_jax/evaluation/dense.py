"""The fully-convolutional form of a network, on photographs of any size in one compiled program (section 3.4).

Photographs are placed at the top left of a canvas. The network pads with zeros, so it computes on a photograph what
it would alone, as long as every layer reads zeros beyond the photograph's edge. What that takes of each module its
class says as ``dense`` (see ``models.layers``); a network with a module that does not say it is refused.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.errors import UserError
from resnet_jax.models import Model

# Flax's own, which cannot say it.
_POINTWISE: tuple[type[nn.Module], ...] = (nn.Dense, nn.Dropout)
_KINDS = (
    "mask_input",
    "reflect_input",
    "mask_output",
    "masked_max",
    "masked_mean",
    "masked_window_mean",
    "rounds_down",
    "pointwise",
    "container",
)


def check_dense(model: Model) -> None:
    """Raises UserError for a network whose class does not say that it has a fully-convolutional form.

    The modules inside of it ``dense_logits`` checks.
    """
    _kind(type(model))


def dense_logits(
    model: Model, variables: Any, images: jax.Array, sizes: jax.Array, window: int | None = None
) -> jax.Array:
    """Logits (N, num_classes) averaged over the positions of each photograph, float32.

    Args:
        model: a network all of whose module classes say what they are as ``dense``.
        images: normalised, (N, H, W, C); H and W must be multiples of the network's stride, 32 with the ImageNet stem.
        sizes: (N, 2) int32, the height and width that each photograph fills from the top left.
        window: average over all windows of ``window`` x ``window`` positions, with a stride of 1, as the authors'
            released network does (7). Positions near the edge are in fewer windows and count less. Default: every
            position counts the same.

    The class scores of every position of the last feature map are averaged, which is what the network's own pooling and
    classifier do on a larger map.

    Raises UserError, while it is traced, for a network with a module that does not say what it is, naming its class.
    """
    canvas = images.shape[1:3]
    if any(length % model.strides[-1] for length in canvas):
        raise UserError(
            f"multi_scale places photographs on canvases such as {canvas[0]} x {canvas[1]} pixels, which the network's "
            f"stride of {model.strides[-1]} does not divide; use ten_crop"
        )

    # By axis: a stride, and what of its maps the photographs fill (N,). Others follow by rounding up, so that a layer
    # that rounds down puts its own here.
    known = [(1, sizes[:, i]) for i in range(2)]

    def filled(shape: tuple[int, ...], i: int) -> jax.Array:
        """(N, 1): rows (i = 0) or columns (1) that each photograph fills of a map of this shape."""
        stride, lengths = known[i]
        return -(-lengths[:, None] // (canvas[i] // shape[i + 1] // stride))

    def inside(shape: tuple[int, ...]) -> jax.Array:
        """(N, h, w, 1): 1 where a map of this shape belongs to the photograph."""
        rows, columns = (jnp.arange(shape[i + 1]) < filled(shape, i) for i in range(2))  # (N, h) and (N, w)
        return (rows[:, :, None] & columns[:, None, :])[..., None]

    def weights(shape: tuple[int, ...], window: int) -> jax.Array:
        """(N, h, w, 1): how many windows each position of the photograph is in; 0 outside of it."""
        found = []
        for i in range(2):
            length = filled(shape, i)
            width = jnp.minimum(window, length)
            at = jnp.arange(shape[i + 1])
            found.append(jnp.minimum(at, length - width) - jnp.maximum(at - width + 1, 0) + 1)
        rows, columns = found
        return jnp.where(inside(shape), (rows[:, :, None] * columns[:, None, :])[..., None], 0)

    def reflected(x: jax.Array) -> jax.Array:
        """What is beyond the photograph's last row and column is what is before them, and so on."""
        for axis in (1, 2):
            place, last = jnp.arange(x.shape[axis]), filled(x.shape, axis - 1) - 1
            source = jnp.maximum(jnp.where(place <= last, place, 2 * last - place), 0)
            x = jnp.take_along_axis(x, jnp.expand_dims(source, (3 - axis, 3)), axis=axis)
        return x

    def keep_inside(x: jax.Array, outside: float = 0) -> jax.Array:
        return jnp.where(inside(x.shape), x, outside)

    def masked(next_call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        kind = _kind(type(context.module))
        if context.method_name != "__call__":
            return next_call(*args, **kwargs)
        if kind == "mask_input":
            return next_call(keep_inside(args[0]), *args[1:], **kwargs)
        if kind == "reflect_input":
            return next_call(reflected(args[0]), *args[1:], **kwargs)
        if kind == "mask_output":
            return keep_inside(next_call(*args, **kwargs))
        if kind == "masked_max":
            # Windows that only begin outside would be -inf.
            return keep_inside(next_call(keep_inside(args[0], -jnp.inf), *args[1:], **kwargs))
        if kind == "masked_window_mean":
            count = next_call(jnp.broadcast_to(inside(args[0].shape).astype(args[0].dtype), args[0].shape))
            return next_call(keep_inside(args[0]), *args[1:], **kwargs) / jnp.where(count > 0, count, 1)
        if kind == "rounds_down":
            y = next_call(*args, **kwargs)
            known[:] = [(canvas[i] // y.shape[i + 1], filled(args[0].shape, i)[:, 0] // 2) for i in range(2)]
            return y
        if kind == "masked_mean":
            x = keep_inside(args[0].astype(jnp.float32))
            if window is not None and context.module.path == ("mean",):  # What the classifier reads.
                weight = weights(x.shape, window)
                return (x * weight).sum(axis=(1, 2)) / weight.sum(axis=(1, 2))
            return x.sum(axis=(1, 2)) / inside(x.shape).sum(axis=(1, 2))
        return next_call(*args, **kwargs)

    with nn.intercept_methods(masked):
        return model.apply(variables, images, train=False)


def _kind(module: type) -> str:
    """What a module class says as ``dense``. Raises UserError for one that does not."""
    kind = "pointwise" if module in _POINTWISE else getattr(module, "dense", None)
    if kind not in _KINDS:
        raise UserError(
            f"multi_scale is not for networks with a {module.__module__}.{module.__qualname__}, whose class does not "
            f"say how it treats whole photographs; use ten_crop, or say it as {module.__name__}.dense (see "
            f"resnet_jax/models/layers.py)"
        )
    return kind
