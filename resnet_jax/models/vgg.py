"""VGG-16 and VGG-19, which the paper measures its networks against (Tables 1, 3 and 4).

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (arXiv 1409.1556).
"""

import math
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.kernels import PLAIN, Kernels
from resnet_jax.models.layers import Conv, Dropout, he_normal
from resnet_jax.models.model import check_frozen

POOLED = 7  # Rows and columns that the first fully-connected layer reads.


class VGG(nn.Module):
    """Stages of 3x3 convolutions with 2x2 max-pools between them, and three fully-connected layers with dropout.

    stage_sizes: convolutions in each stage; the first has ``width`` filters, each next twice as many, up to 8 x width.
    num_classes: width of the classifier; 0 for none, and the result is that of the layer before.
    hidden: units of the two fully-connected layers before the classifier.
    dtype: of the computation. Parameters and logits are float32 in any case.
    kernels: how convolutions are computed: the same to rounding.
    frozen_stages: see ``frozen``.

    There is no batch normalisation, so there are no "batch_stats". Weights start as He et al. have them (the paper's
    [13]), which trains these networks from scratch.
    """

    family: ClassVar[str] = "vgg"

    stage_sizes: tuple[int, ...]
    num_classes: int
    width: int = 64
    hidden: int = 4096
    dtype: jnp.dtype = jnp.float32
    kernels: Kernels = PLAIN
    frozen_stages: tuple[str, ...] = ()

    @property
    def image_size(self) -> int:
        """Height and width of the images that it was trained on; it takes others as well."""
        return 224

    @property
    def has_batch_norm(self) -> bool:
        return False

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the feature maps of the stages, before they are pooled."""
        return tuple(2**i for i in range(len(self.stage_sizes)))

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The stages of convolutions, the fully-connected layers "fc6" and "fc7", and the head."""
        return *(f"stage{i + 1}" for i in range(len(self.stage_sizes))), "fc6", "fc7", "head"

    def stage_of(self, module: str) -> str:
        """By the beginning of its name."""
        return module if module in self.stage_names else f"stage{module.removeprefix('conv').partition('_')[0]}"

    def head_distances(self, module: str) -> tuple[int, ...]:
        """In layers: 0 for the head, 1 for fc7, 2 for fc6, 3 for the last convolution."""
        if module in ("head", "fc7", "fc6"):
            return (("head", "fc7", "fc6").index(module),)
        stage, conv = map(int, module.removeprefix("conv").split("_"))
        return (sum(self.stage_sizes[stage - 1 :]) - conv + 3,)

    def frozen(self, stages: tuple[str, ...], norms: bool) -> "VGG":
        """Of which ``stages`` are not trained; see ``Model``. It has no batch normalisation."""
        return self.clone(frozen_stages=check_frozen(self, stages))

    def keeps_statistics(self, module: str) -> bool:
        """There are none."""
        return False

    def unrolled(self) -> "VGG":
        """Itself: its variables have one layout."""
        return self

    def scanned(self) -> "VGG":
        """Itself: its variables have one layout."""
        return self

    def response_layers(self) -> dict[tuple[str, ...], str]:
        """None: Figure 7 shows the outputs of batch normalisations."""
        return {}

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, stages: tuple[int, int] | None = None
    ) -> jax.Array | dict:
        """Maps normalised images (N, H, W, 3) to logits (N, num_classes), float32; with 0 classes to (N, hidden).

        H and W are at least 32. With ``train`` half of the units are dropped, by an rng called "dropout". Maps of
        images that are not 224 x 224 are averaged to 7 x 7, as torchvision does.

        With ``stages`` only those from the first to the second number are computed, both included, and the result is
        a dict of their outputs: "C1", "C2", ... to "C5", before they are pooled, and "fc7" (N, hidden) of one stage
        more (6), which is the two fully-connected layers. ``images`` then stands for what the first of them reads. The
        variables have the same names, so those of the whole network fit.
        """
        last = len(self.stage_sizes) + 1
        begin, end = (1, last) if stages is None else stages
        x, outputs = images, {}
        conv = partial(Conv, use_bias=True, dtype=self.dtype, kernels=self.kernels)
        for i, num_convs in enumerate(self.stage_sizes):
            if not begin <= i + 1 <= end:
                continue
            for j in range(num_convs):
                filters = self.width * min(2**i, 8)
                x = nn.relu(conv(filters, 3, name=f"conv{i + 1}_{j + 1}")(x))
            outputs[f"C{i + 1}"] = x
            if i + 1 < end:
                x = self._end(f"stage{i + 1}", nn.max_pool(x, window_shape=(2, 2), strides=(2, 2)))
        if end < last:
            return outputs
        x = adaptive_mean(x, POOLED)
        x = x.reshape(x.shape[0], -1)
        for name in ("fc6", "fc7"):
            x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, kernel_init=he_normal, name=name)(x))
            x = self._end(name, Dropout(0.5, deterministic=not train)(x))
        x = x.astype(jnp.float32)
        if stages is not None:
            return outputs | {"fc7": x}
        return nn.Dense(self.num_classes, kernel_init=he_normal, name="head")(x) if self.num_classes else x

    def _end(self, stage: str, x: jax.Array) -> jax.Array:
        """The output of a stage, through which no gradient goes back where all up to it is frozen."""
        before = self.stage_names[: self.stage_names.index(stage) + 1]
        return jax.lax.stop_gradient(x) if set(before) <= set(self.frozen_stages) else x


def adaptive_mean(x: jax.Array, size: int) -> jax.Array:
    """Maps (N, H, W, C) to (N, size, size, C): cell i is the mean of rows floor(i H / size) to ceil((i + 1) H / size).

    As PyTorch's AdaptiveAvgPool2d, with which torchvision's VGG takes images of any size.
    """
    if x.shape[1:3] == (size, size):
        return x

    def means(length: int) -> jax.Array:
        cells = [(i * length // size, math.ceil((i + 1) * length / size)) for i in range(size)]
        return jnp.stack(
            [jnp.where((jnp.arange(length) >= a) & (jnp.arange(length) < b), 1 / (b - a), 0) for a, b in cells]
        )

    return jnp.einsum("nhwc,ih,jw->nijc", x, means(x.shape[1]).astype(x.dtype), means(x.shape[2]).astype(x.dtype))
