"""Networks whose blocks normalise and activate what each convolution reads, so that nothing is in a shortcut's way.

He et al., "Identity Mappings in Deep Residual Networks" (arXiv 1603.05027, Figure 1b), the sequel of the paper.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax

from resnet_jax.errors import UserError
from resnet_jax.models.blocks import Block
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.shortcuts import Factory, changes


class PreactivationNet(ResNet):
    """A residual network of pre-activation blocks: after the last one comes its last normalisation and activation.

    Of its ``features`` each stage's is the sum that the next one reads, before the normalisation. Its stem should end
    in a convolution.

    activated_stem: whether the first activation comes before the first block's paths split, so that its shortcut has
        it, too (the sequel's appendix). Wide residual networks and timm's do not have it so. It makes no difference
        where that shortcut is a convolution.
    """

    family: ClassVar[str] = "preactivation"
    dense: ClassVar[str] = "container"

    activated_stem: bool = False

    def first_block(self, index: int) -> Factory:
        """With the shortcut that ``activated_stem`` says."""
        return partial(self.block, activated=True) if index == 0 and self.activated_stem else self.block

    def finish(self, x: jax.Array, norm: Factory) -> jax.Array:
        return self.activation(norm(name="last_bn")(x))


class _PreactivationBlock(Block):
    """What the two blocks share.

    A shortcut whose shape changes is a convolution of the normalised and activated input, without a normalisation of
    its own; any other is the input itself.

    activated: whether any other is the normalised and activated input as well.
    """

    activated: bool = False

    def check(self) -> None:
        """Raises UserError."""
        if self.zero_init_last_bn:
            raise UserError(
                "zero_init_last_bn is for blocks that end in a normalisation, which these do not; remove it"
            )

    def before(self, x: jax.Array) -> jax.Array:
        """What the first convolution reads."""
        self.check()  # The network may have been made by hand.
        return self.activation(self.norm(name="bn1")(x))

    def add(self, x: jax.Array, before: jax.Array, residual: jax.Array, drop_path: Any) -> jax.Array:
        residual = self.weighted(residual, drop_path)
        read = before if self.activated or changes(x, residual, self.strides) else x
        return self.shortcut(read, residual, self.strides, self.conv, _no_norm)


def _no_norm(**_: Any) -> Callable[[jax.Array], jax.Array]:
    return lambda x: x


class PreactivationBasicBlock(_PreactivationBlock):
    """Two 3x3 convolutions. (N, H, W, I) to (N, H/strides, W/strides, widen * filters).

    widen: of a wide residual network (Zagoruyko and Komodakis, arXiv 1605.07146, section 2).
    """

    dense: ClassVar[str] = "container"
    responses = (("bn2", "conv1"),)

    widen: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, drop_path: jax.Array | float | None = None) -> jax.Array:
        before = self.before(x)
        filters = self.widen * self.filters
        y = self.conv(filters, 3, self.strides, name="conv1")(before)
        y = self.activation(self.norm(name="bn2")(y))
        y = self.conv(filters, 3, 1, name="conv2")(y)
        return self.add(x, before, y, drop_path)


class PreactivationBottleneckBlock(_PreactivationBlock):
    """1x1, 3x3 and 1x1 convolutions. (N, H, W, I) to (N, H/strides, W/strides, 4 * filters).

    first_strides: stride in the first convolution, as the authors' release does, and not in the 3x3 one, as timm's
        resnetv2.
    """

    dense: ClassVar[str] = "container"
    responses = (("bn3", "conv2"),)

    first_strides: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, drop_path: jax.Array | float | None = None) -> jax.Array:
        before = self.before(x)
        first, middle = (self.strides, 1) if self.first_strides else (1, self.strides)
        y = self.conv(self.filters, 1, first, name="conv1")(before)
        y = self.activation(self.norm(name="bn2")(y))
        y = self.conv(self.filters, 3, middle, name="conv2")(y)
        y = self.activation(self.norm(name="bn3")(y))
        y = self.conv(4 * self.filters, 1, 1, name="conv3")(y)
        return self.add(x, before, y, drop_path)
