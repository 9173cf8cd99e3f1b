"""Residual networks and their plain twins: a stem, stages of blocks, and a linear classifier (Table 1, section 4.2)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.models.blocks import BasicBlock, BottleneckBlock
from resnet_jax.models.conv import Conv, he_normal
from resnet_jax.models.norm import BatchNorm
from resnet_jax.models.pool import max_pool


class ResNet(nn.Module):
    """A residual or plain network.

    stage_sizes: blocks in each stage; stage i has ``width * 2**i`` base filters and, but for the first, stride 2.
    bottleneck: 1x1-3x3-1x1 blocks instead of 3x3-3x3 ones.
    stem: "imagenet" (7x7 stride 2, then 3x3 max-pool stride 2) or "cifar" (3x3 stride 1).
    shortcut: "A", "B", "C", None for a plain network, or "gated" for a highway network. See ``blocks.Block``.
    stride_placement: "v1" or "v1.5"; read by bottleneck blocks only.
    dtype: of the computation. Parameters, batch statistics and logits are float32 in any case.
    bn_group_size: examples that share batch statistics in training; None is the whole global batch.
    bn_momentum: how much of the running statistics each training batch keeps.
    zero_init_last_bn: start every block as its shortcut (not in the paper).
    remat: recompute each block's activations in the backward pass, which trades a forward pass for memory.
    scan_blocks: compile the equal blocks of a stage once and loop over them. Compile time then does not grow with
        depth, and their parameters are stacked under ``stage{i}_blocks``. See ``stacking`` to convert.
    """

    stage_sizes: tuple[int, ...]
    num_classes: int
    width: int = 64
    bottleneck: bool = False
    stem: str = "imagenet"
    shortcut: str | None = "B"
    stride_placement: str = "v1"
    dtype: jnp.dtype = jnp.float32
    bn_group_size: int | None = None
    bn_momentum: float = 0.9
    zero_init_last_bn: bool = False
    remat: bool = False
    scan_blocks: bool = False

    @property
    def image_size(self) -> int:
        """Height and width of the images that the paper trains it on; the network takes others as well."""
        return 224 if self.stem == "imagenet" else 32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, features: bool = False) -> jax.Array | dict:
        """Maps normalised images (N, H, W, 3) to logits (N, num_classes), float32.

        With ``train`` batch statistics are those of the batch, and "batch_stats" must be mutable. With ``features``
        the result is a dict of each stage's output instead: "C1" is the stem's (before the max-pool), "C2" the first
        stage's, and so on to "C5" (ImageNet) or "C4" (CIFAR), each (N, H', W', channels) in ``dtype``.
        """
        norm = partial(
            BatchNorm,
            use_running_average=not train,
            group_size=self.bn_group_size,
            momentum=self.bn_momentum,
            dtype=self.dtype,
        )
        size, strides = (7, 2) if self.stem == "imagenet" else (3, 1)
        x = Conv(self.width, size, strides, dtype=self.dtype, name="stem_conv")(images)
        x = nn.relu(norm(name="stem_bn")(x))
        outputs = {"C1": x}
        if self.stem == "imagenet":
            x = max_pool(x)
        for i, num_blocks in enumerate(self.stage_sizes):
            x = self._stage(x, i, num_blocks, norm)
            outputs[f"C{i + 2}"] = x
        if features:
            return outputs
        x = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        return nn.Dense(self.num_classes, kernel_init=he_normal, name="head")(x)

    def _stage(self, x: jax.Array, index: int, num_blocks: int, norm: partial) -> jax.Array:
        block = BottleneckBlock if self.bottleneck else BasicBlock
        fields: dict[str, Any] = {
            "filters": self.width * 2**index,
            "shortcut": self.shortcut,
            "norm": norm,
            "stride_placement": self.stride_placement,
            "zero_init_last_bn": self.zero_init_last_bn,
            "dtype": self.dtype,
        }
        # Inside a scan the loop itself keeps the recomputation apart from the forward pass.
        unrolled = nn.remat(block) if self.remat else block
        looped = nn.remat(block, prevent_cse=False) if self.remat else block
        name = f"stage{index + 1}"
        x = unrolled(**fields, strides=1 if index == 0 else 2, name=f"{name}_block1")(x)
        if self.scan_blocks and num_blocks > 1:
            loop = nn.scan(
                lambda module, carry, _: (module(carry), None),
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True},
                length=num_blocks - 1,
            )
            x, _ = loop(looped(**fields, strides=1, name=f"{name}_blocks"), x, None)
        else:
            for i in range(1, num_blocks):
                x = unrolled(**fields, strides=1, name=f"{name}_block{i + 1}")(x)
        return x
