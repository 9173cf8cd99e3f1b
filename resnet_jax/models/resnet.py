"""Residual networks and their plain twins: a stem, stages of blocks, and a linear classifier (Table 1, section 4.2)."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.errors import UserError
from resnet_jax.kernels import PLAIN, Kernels
from resnet_jax.models.blocks import BasicBlock
from resnet_jax.models.layers import BatchNorm, Conv, Dropout, GlobalMean, he_normal
from resnet_jax.models.model import check_frozen
from resnet_jax.models.shortcuts import Factory, Shortcut, class_of, none, projection
from resnet_jax.models.stems import STEMS, Stem


class ResNet(nn.Module):
    """A residual or plain network, made of parts. ``create_model`` makes the paper's by name.

    stage_sizes: blocks in each stage; stage i has ``width * 2**i`` base filters and, but for the first, stride 2.
    num_classes: width of the classifier; 0 for none, and the result is the averaged features.
    block: a ``blocks.Block`` class, or a ``functools.partial`` of one.
    stem: one of ``stems.STEMS`` or another ``Stem``.
    shortcut: one of ``shortcuts.SHORTCUTS`` or another function of that kind.
    conv: the class of the convolutions, or a ``functools.partial`` of it, called with ``dtype``, ``kernels`` and what
        ``blocks.Block`` says.
    norm: the class of the normalisations, or a ``functools.partial`` of it that sets its ``momentum`` and
        ``group_size``. It is called with ``dtype``, ``name``, maybe ``scale_init`` and, unless its class says
        ``of_batches = False``, ``use_running_average``.
    activation: of the stem and the blocks; a function of an array, an element at a time.
    attention: a module class, or a ``functools.partial`` of one, that rescales each block's residual branch, called
        with ``dtype`` and ``name``; None for none.
    drop_path: the probability, in [0, 1), that the last block's residual branch is left out in training; block l of L
        has l / L of it (see ``blocks.Block.weighted``; timm's, counted from 0, has (l - 1) / (L - 1)). 0 is off.
    dropout: the part, in [0, 1), of the averaged features that the classifier does not see in training. 0 is off. It is
        not that of wide residual networks, which is within the blocks.
    dtype: of the computation. Parameters, batch statistics and logits are float32 in any case.
    kernels: how convolutions and the max-pool are computed: the same to rounding.
    zero_init_last_bn: start every block as its shortcut (not in the paper).
    remat: recompute each block's activations in the backward pass, which trades a forward pass for memory.
    scan_blocks: compile the equal blocks of a stage once and loop over them. Compile time then does not grow with
        depth, and their parameters are stacked under ``stage{i}_blocks``. See ``stacking`` to convert.
    frozen_stages, frozen_norms: see ``frozen``.
    """

    family: ClassVar[str] = "resnet"
    dense: ClassVar[str] = "container"

    stage_sizes: tuple[int, ...]
    num_classes: int
    width: int = 64
    block: Factory = BasicBlock
    stem: Stem = STEMS["imagenet"]
    shortcut: Shortcut = projection
    conv: Factory = Conv
    norm: Factory = BatchNorm
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    attention: Factory | None = None
    drop_path: float = 0.0
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    kernels: Kernels = PLAIN
    zero_init_last_bn: bool = False
    remat: bool = False
    scan_blocks: bool = False
    frozen_stages: tuple[str, ...] = ()
    frozen_norms: bool = False

    @property
    def image_size(self) -> int:
        """Height and width of the usual images of a network with this stem, which takes others as well."""
        return self.stem.image_size

    @property
    def has_batch_norm(self) -> bool:
        return getattr(class_of(self.norm), "of_batches", True)

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the feature maps "C1", "C2", ...: how many pixels of the image one of theirs spans."""
        first, then = self.stem.strides
        return first, *(then * 2**i for i in range(len(self.stage_sizes)))

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The stem, the stages of blocks, and the head."""
        return "stem", *(f"stage{i + 1}" for i in range(len(self.stage_sizes))), "head"

    def stage_of(self, module: str) -> str:
        """By the beginning of its name; what follows the last stage of blocks belongs to it."""
        stage = module.partition("_")[0]
        return stage if stage in self.stage_names else self.stage_names[-2]

    def head_distances(self, module: str) -> tuple[int, ...]:
        """0 for the head, 1 for the last block, and the number of blocks + 1 for the stem."""
        stage, _, block = module.partition("_block")
        if stage not in self.stage_names[1:-1]:
            return ({"head": 0, "stem": sum(self.stage_sizes) + 1}.get(self.stage_of(module), 1),)
        index = self.stage_names.index(stage) - 1
        first = sum(self.stage_sizes[index:])
        if block == "s":
            return tuple(range(first - 1, first - self.stage_sizes[index], -1))
        return (first - int(block) + 1,)

    def frozen(self, stages: tuple[str, ...], norms: bool) -> "ResNet":
        """Of which ``stages`` are not trained, nor with ``norms`` any batch normalisation; see ``Model``."""
        return self.clone(frozen_stages=check_frozen(self, stages), frozen_norms=norms)

    def keeps_statistics(self, module: str) -> bool:
        """Whether it is frozen, or all batch normalisations are."""
        return self.frozen_norms or self.stage_of(module) in self.frozen_stages

    def unrolled(self) -> "ResNet":
        """The network whose variables have an entry for each block: ``stacking.unstack_blocks`` of this one's."""
        return self.clone(scan_blocks=False)

    def scanned(self) -> "ResNet":
        """The network whose variables are ``stacking.stack_blocks`` of ``unrolled``'s."""
        return self.clone(scan_blocks=True)

    def response_layers(self) -> dict[tuple[str, ...], str]:
        """The path of each batch normalisation of the unrolled network that follows a 3x3 convolution, in order.

        Each with the name of that layer: "stem", "stage1_block1/conv1", ... (Figure 7). None where other
        normalisations take their place.
        """
        if not self.has_batch_norm:
            return {}
        layers: dict[tuple[str, ...], str] = {(norm,): layer for norm, layer in self.stem.responses}
        block = class_of(self.block)
        for i, num_blocks in enumerate(self.stage_sizes, start=1):
            for j in range(1, num_blocks + 1):
                name = f"stage{i}_block{j}"
                layers |= {(name, norm): f"{name}/{layer}" for norm, layer in block.responses}
        return layers

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        train: bool = False,
        features: bool = False,
        stages: tuple[int, int] | None = None,
    ) -> jax.Array | dict:
        """Maps normalised images (N, H, W, 3) to logits (N, num_classes), float32; with 0 classes to (N, channels).

        With ``train`` batch statistics are those of the batch, "batch_stats" must be mutable, and ``drop_path`` and
        ``dropout`` each need an rng of that name. With ``features`` the result is a dict of each stage's output
        instead: "C1" is the stem's (before the max-pool), "C2" the first stage's, and so on to "C5" (ImageNet) or "C4"
        (CIFAR), each (N, H', W', channels) in ``dtype``.

        With ``stages`` only those from the first to the second number are computed, both included, and the result is
        the dict of their outputs; 0 is the stem. ``images`` then stands for what the first of them reads. The variables
        have the same names, so those of the whole network fit.
        """
        begin, end = (0, len(self.stage_sizes)) if stages is None else stages
        norm = partial(self.norm, dtype=self.dtype)
        if self.has_batch_norm:
            norm = partial(norm, use_running_average=not train)
        conv = partial(self.conv, dtype=self.dtype, kernels=self.kernels)
        x, outputs = images, {}
        if begin == 0:
            of_stem = self._norm_of("stem", norm)
            outputs["C1"], x = self.stem.apply(images, self.width, conv, of_stem, self.activation, self.kernels)
            x = self._end(0, x)
        for i in range(max(begin - 1, 0), end):
            drop = self._drop_paths(i) if train and self.drop_path else None
            x = self._end(i + 1, self._stage(x, i, conv, self._norm_of(self.stage_names[i + 1], norm), drop))
            outputs[f"C{i + 2}"] = x
        if features or stages is not None:
            return outputs
        x = self._end(end, self.finish(x, self._norm_of(self.stage_names[-2], norm)))
        x = GlobalMean(name="mean")(x)
        if self.dropout:
            x = Dropout(self.dropout, deterministic=not train, name="dropout")(x)
        return nn.Dense(self.num_classes, kernel_init=he_normal, name="head")(x) if self.num_classes else x

    def finish(self, x: jax.Array, norm: Factory) -> jax.Array:
        """What the last stage's output goes through before the mean: nothing, since its last block has ended in it."""
        return x

    def first_block(self, index: int) -> Factory:
        """What makes the first block of stage ``index``, from 0: as all others."""
        return self.block

    def _norm_of(self, stage: str, norm: Factory) -> Factory:
        """What makes a stage's batch normalisations."""
        return partial(norm, use_running_average=True) if self.has_batch_norm and self.keeps_statistics(stage) else norm

    def _end(self, index: int, x: jax.Array) -> jax.Array:
        """The output of a stage, through which no gradient goes back where all up to it is frozen."""
        return jax.lax.stop_gradient(x) if set(self.stage_names[: index + 1]) <= set(self.frozen_stages) else x

    def _drop_paths(self, stage: int) -> list[float]:
        """The probability of each block of a stage that its residual branch is left out."""
        before, total = sum(self.stage_sizes[:stage]), sum(self.stage_sizes)
        return [self.drop_path * (before + j) / total for j in range(1, self.stage_sizes[stage] + 1)]

    def check_blocks(self) -> None:
        """Raises UserError where fields of the blocks do not go together."""
        if self.drop_path and self.shortcut is none:
            raise UserError("drop_path is for blocks with a shortcut, which is all that is left of one; set it to 0")
        for i in range(len(self.stage_sizes)):
            block: Any = self.block(**self._fields_of_blocks(i, self.conv, self.norm), strides=2, parent=None)
            block.check()

    def _fields_of_blocks(self, index: int, conv: Factory, norm: Factory) -> dict[str, Any]:
        """What the blocks of a stage have in common."""
        return {
            "filters": self.width * 2**index,
            "conv": conv,
            "norm": norm,
            "shortcut": self.shortcut,
            "activation": self.activation,
            "attention": None if self.attention is None else partial(self.attention, dtype=self.dtype),
            "zero_init_last_bn": self.zero_init_last_bn,
        }

    def _stage(self, x: jax.Array, index: int, conv: Factory, norm: Factory, drop: list[float] | None) -> jax.Array:
        num_blocks, fields = self.stage_sizes[index], self._fields_of_blocks(index, conv, norm)
        # Inside a scan the loop itself keeps the recomputation apart from the forward pass.
        unrolled = _remat(self.block) if self.remat else self.block
        looped = _remat(self.block, prevent_cse=False) if self.remat else self.block
        name = f"stage{index + 1}"

        def call(module: Any, x: jax.Array, drop_path: jax.Array | float | None) -> jax.Array:
            return module(x) if drop_path is None else module(x, drop_path)

        first_block = _remat(self.first_block(index)) if self.remat else self.first_block(index)
        first: Any = first_block(**fields, strides=1 if index == 0 else 2, name=f"{name}_block1")
        x = call(first, x, None if drop is None else drop[0])
        if self.scan_blocks and num_blocks > 1:
            loop = nn.scan(
                lambda module, carry, drop_path: (call(module, carry, drop_path), None),
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True, "dropout": True, "drop_path": True},
                length=num_blocks - 1,
            )
            rest = None if drop is None else jnp.asarray(drop[1:], jnp.float32)
            x, _ = loop(looped(**fields, strides=1, name=f"{name}_blocks"), x, rest)
        else:
            for i in range(1, num_blocks):
                block: Any = unrolled(**fields, strides=1, name=f"{name}_block{i + 1}")
                x = call(block, x, None if drop is None else drop[i])
        return x


def _remat(block: Any, **options: Any) -> Any:
    """A block class, or a partial of one, whose activations are recomputed."""
    if isinstance(block, partial):
        return partial(nn.remat(block.func, **options), *block.args, **block.keywords)
    return nn.remat(block, **options)
