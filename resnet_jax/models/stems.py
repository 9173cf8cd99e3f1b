"""What a residual network begins with: the layers before the first stage (Table 1, section 4.2)."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from resnet_jax.kernels import Kernels
from resnet_jax.models.layers import MaxPool
from resnet_jax.models.shortcuts import Factory

Function = Callable[[jax.Array], jax.Array]


class Stem(NamedTuple):
    """A stem and what is known of it.

    apply: ``apply(images, width, conv, norm, activation, kernels)``, called within the network's compact method, gives
        the feature map "C1" of ``width`` channels and what the first stage reads.
    strides: of these two.
    image_size: height and width of the images that it was made for.
    responses: each of its batch normalisations that follows a 3x3 convolution, with the name of that layer (Figure 7).
    """

    apply: Callable[[jax.Array, int, Factory, Factory, Function, Kernels], tuple[jax.Array, jax.Array]]
    strides: tuple[int, int]
    image_size: int
    responses: tuple[tuple[str, str], ...] = ()


def _imagenet(
    images: jax.Array, width: int, conv: Factory, norm: Factory, activation: Function, kernels: Kernels
) -> tuple[jax.Array, jax.Array]:
    """7x7 with stride 2, then a 3x3 max-pool with stride 2."""
    x = activation(norm(name="stem_bn")(conv(width, 7, 2, name="stem_conv")(images)))
    return x, MaxPool(kernels, name="stem_pool")(x)


def _cifar(
    images: jax.Array, width: int, conv: Factory, norm: Factory, activation: Function, kernels: Kernels
) -> tuple[jax.Array, jax.Array]:
    """3x3 with stride 1."""
    x = activation(norm(name="stem_bn")(conv(width, 3, 1, name="stem_conv")(images)))
    return x, x


STEMS = {
    "imagenet": Stem(_imagenet, strides=(2, 4), image_size=224),
    "cifar": Stem(_cifar, strides=(1, 1), image_size=32, responses=(("stem_bn", "stem"),)),
}
