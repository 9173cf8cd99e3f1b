"""What a residual network begins with: the layers before the first stage (Table 1, section 4.2)."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax

from resnet_jax.kernels import Kernels
from resnet_jax.models.layers import MaxPool
from resnet_jax.models.pooling import BlurPool, MaxOfNeighbours, WholeMeanPool, ZeroPaddedMaxPool
from resnet_jax.models.shortcuts import Factory

Function = Callable[[jax.Array], jax.Array]


class Stem(NamedTuple):
    """A stem and what is known of it.

    apply: ``apply(images, width, conv, norm, activation, kernels)``, called within the network's compact method, gives
        the feature map "C1" and what the first stage reads.
    strides: of these two.
    image_size: height and width of the images that networks with it usually see.
    responses: each of its batch normalisations that follows a 3x3 convolution, with the name of that layer (Figure 7).
    preactivation: whether it is for pre-activation blocks: it leaves out the last normalisation and activation.
    """

    apply: Callable[[jax.Array, int, Factory, Factory, Function, Kernels], tuple[jax.Array, jax.Array]]
    strides: tuple[int, int]
    image_size: int
    responses: tuple[tuple[str, str], ...] = ()
    preactivation: bool = False


# Convolutions: (images, width, conv, norm, activation) to "C1", of which those of a network with pre-activation blocks
# leave out the last normalisation and activation.
Convolutions = Callable[[jax.Array, int, Factory, Factory, Function], jax.Array]
# Pools: (x, conv, norm, activation, kernels) to what the first stage reads.
Pool = Callable[[jax.Array, Factory, Factory, Function, Kernels], jax.Array]


def _single(
    images: jax.Array, width: int, conv: Factory, norm: Factory, act: Function, size: int, strides: int, end: bool
) -> jax.Array:
    x = conv(width, size, strides, name="stem_conv")(images)
    return act(norm(name="stem_bn")(x)) if end else x


def _deep(
    images: jax.Array, width: int, conv: Factory, norm: Factory, act: Function, shares: tuple[float, ...], end: bool
) -> jax.Array:
    """Three 3x3 convolutions, the first with stride 2. ``shares``: each one's filters, as parts of ``width``."""
    first, second, third = (max(1, int(width * share)) for share in shares)
    x = act(norm(name="stem_bn1")(conv(first, 3, 2, name="stem_conv1")(images)))
    x = act(norm(name="stem_bn2")(conv(second, 3, 1, name="stem_conv2")(x)))
    x = conv(third, 3, 1, name="stem_conv3")(x)
    return act(norm(name="stem_bn")(x)) if end else x


def _no_pool(x: jax.Array, conv: Factory, norm: Factory, act: Function, kernels: Kernels) -> jax.Array:
    return x


def _max(x: jax.Array, conv: Factory, norm: Factory, act: Function, kernels: Kernels) -> jax.Array:
    return MaxPool(kernels, name="stem_pool")(x)


def _zero_padded_max(x: jax.Array, conv: Factory, norm: Factory, act: Function, kernels: Kernels) -> jax.Array:
    return ZeroPaddedMaxPool(kernels, name="stem_pool")(x)


def _mean(x: jax.Array, conv: Factory, norm: Factory, act: Function, kernels: Kernels) -> jax.Array:
    return WholeMeanPool(name="stem_pool")(x)


def _blur(x: jax.Array, conv: Factory, norm: Factory, act: Function, kernels: Kernels) -> jax.Array:
    return BlurPool(name="stem_blur")(MaxOfNeighbours(name="stem_pool")(x))


def _strided(x: jax.Array, conv: Factory, norm: Factory, act: Function, kernels: Kernels) -> jax.Array:
    return act(norm(name="stem_pool_bn")(conv(x.shape[-1], 3, 2, name="stem_pool_conv")(x)))


def _apply(
    images: jax.Array,
    width: int,
    conv: Factory,
    norm: Factory,
    activation: Function,
    kernels: Kernels,
    *,
    convolutions: Convolutions,
    pool: Pool,
) -> tuple[jax.Array, jax.Array]:
    x = convolutions(images, width, conv, norm, activation)
    return x, pool(x, conv, norm, activation, kernels)


def _stem(convolutions: Convolutions, pool: Pool, **known: Any) -> Stem:
    of_imagenet: dict[str, Any] = {"strides": (2, 4), "image_size": 224}
    return Stem(partial(_apply, convolutions=convolutions, pool=pool), **{**of_imagenet, **known})


PREACTIVATION = "_preactivation"
"""What a stem's name ends in where it is that of the same convolutions for pre-activation blocks."""


def _stems() -> dict[str, Stem]:
    single, deep = partial(_single, size=7, strides=2), partial(_deep, shares=(1 / 2, 1 / 2, 1))
    tiered = partial(_deep, shares=(3 / 8, 1 / 2, 1))
    convolutions = {
        "imagenet": single,  # 7x7, of the paper's Table 1.
        "deep": deep,  # "ResNet-C" of He et al., "Bag of Tricks" (arXiv 1812.01187, Figure 2b).
        "deep_wide": partial(_deep, shares=(1, 1, 2)),  # The same with twice the filters: SENet-154, ResNet-S.
        "tiered": tiered,  # timm's narrower variant of it.
    }
    pools = {
        "": _max,  # The paper's: 3x3 with stride 2.
        "_mean": _mean,
        "_blur": _blur,  # Zhang, arXiv 1904.11486.
        "_strided": _strided,  # A convolution instead: ResNet-RS (Bello et al., arXiv 2103.07579, section 5).
    }
    # Their normalisations after 3x3 convolutions: those within the deep ones, that at their end, and that of a pool.
    inner, end = (("stem_bn1", "stem_conv1"), ("stem_bn2", "stem_conv2")), (("stem_bn", "stem_conv3"),)
    stems = {}
    for name, convs in convolutions.items():
        for suffix, pool in pools.items():
            responses = (() if convs is single else inner + end) + (
                (("stem_pool_bn", "stem_pool_conv"),) if pool is _strided else ()
            )
            stems[f"{name}{suffix}"] = _stem(partial(convs, end=True), pool, responses=responses)
    known: dict[str, Any] = {"strides": (1, 1), "image_size": 32}
    on_cifar = partial(_single, size=3, strides=1)  # Section 4.2.
    stems["cifar"] = _stem(partial(on_cifar, end=True), _no_pool, **known, responses=(("stem_bn", "stem"),))
    # Before pre-activation blocks, which normalise what they read.
    stems[f"cifar{PREACTIVATION}"] = _stem(partial(on_cifar, end=False), _no_pool, **known, preactivation=True)
    for name, convs in (("imagenet", single), ("deep", deep), ("tiered", tiered)):
        responses = () if convs is single else inner
        stems[f"{name}{PREACTIVATION}"] = _stem(
            partial(convs, end=False), _max, preactivation=True, responses=responses
        )
    # Kolesnikov et al., arXiv 1912.11370.
    stems["bit"] = _stem(partial(single, end=False), _zero_padded_max, preactivation=True)
    return stems


STEMS = _stems()
