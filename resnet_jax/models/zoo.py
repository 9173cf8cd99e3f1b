"""Networks by name: those of the paper, those that it compares them with, and their relatives of timm and torchvision.

A new network is a row of ``_others``. Its fields are those of its model, and of its block where that has some of its
own; they are also what ``create_model`` may override.

The names of the paper, resnet18 to resnet152 and those of CIFAR, are the paper's networks. Its relatives are what timm
and torchvision have under the name, so that their weights fit as they are: above all, bottlenecks stride in their 3x3
convolution there ("v1.5").
"""

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from resnet_jax.errors import UserError
from resnet_jax.kernels import PLAIN, Kernels
from resnet_jax.models.attention import SqueezeExcitation
from resnet_jax.models.blocks import BasicBlock, Block, BottleneckBlock
from resnet_jax.models.fields import field_names, make_model, partial
from resnet_jax.models.model import Model
from resnet_jax.models.norms import EvoNormS0, FilterResponseNorm, GroupNorm
from resnet_jax.models.preactivation import PreactivationBasicBlock, PreactivationBottleneckBlock, PreactivationNet
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.standardised import StandardisedConv
from resnet_jax.models.vgg import VGG


class Variant(NamedTuple):
    """A network that has a name.

    model: its class, a ``Model``.
    depth: its layers with weights, as the paper counts them: those on the longest path. Where the name is timm's, what
        it says: a stem of three convolutions is counted as one there.
    fields: what defines it, as ``create_model`` takes it.
    in_paper: whether the paper has it, or compares with it.
    """

    model: Any
    depth: int
    fields: Mapping[str, Any]
    in_paper: bool = False

    @property
    def family(self) -> str:
        """ "resnet", "preactivation" or "vgg"."""
        return self.model.family

    @property
    def image_size(self) -> int:
        """Height and width of the usual images of a network with its stem."""
        return make_model(self.model, self.fields).image_size

    @property
    def own_fields(self) -> list[str]:
        """The names of all fields that ``create_model`` may override."""
        return field_names(self.model, self.fields)


def list_models() -> list[str]:
    """The names that ``create_model`` takes."""
    return list(_variants())


def all_fields() -> set[str]:
    """The names of the fields that some network has."""
    return {field for row in _variants().values() for field in row.own_fields}


def variant(name: str) -> Variant:
    """What is known of a name. Raises UserError for an unknown one, naming the nearest."""
    variants = _variants()
    if name not in variants:
        close = difflib.get_close_matches(name, variants, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        of_paper = ", ".join(known for known, row in variants.items() if row.in_paper)
        raise UserError(
            f"unknown model {name!r}; {hint}The models are {of_paper}, and those of timm and others that "
            f"resnet_jax.list_models() names; others through stage_sizes"
        )
    return variants[name]


def create_model(name: str, num_classes: int | None = None, *, kernels: Kernels = PLAIN, **overrides: Any) -> Model:
    """Makes the linen module of a network of the paper, a ``ResNet``, or of one that it compares with.

    Args:
        name: one of ``list_models()``: "resnet50", "resnet110", "plain34", "highway20", "vgg16" (a ``VGG``), or one of
            timm's: "resnet50d", "resnext50_32x4d", "seresnet152d", "resnetv2_50x1_bit", ...
        num_classes: width of the classifier; default 1000 (ImageNet networks) or 10 (CIFAR networks). With 0 there is
            none, and the network gives the features that it would read.
        kernels: how the model computes; default JAX's own operations. ``kernels.fast_kernels`` are faster on CPUs.
        **overrides: any other field of ``ResNet`` or ``VGG``: ``width=32``, ``stage_sizes=(1, 1, 1)``, ... For parts of
            the paper and its relatives their names will do: ``shortcut`` "A", "B", "C" (section 3.3), "none" (a plain
            network), "gated" (a highway network) or "D" (``shortcuts.pooled_projection``), ``stem`` one of
            ``stems.STEMS`` ("imagenet", "cifar", "deep" and "tiered" of a network of pre-activation blocks are those
            for such blocks), ``attention`` one of ``attention.ATTENTION``, ``antialias`` one of ``pooling.ANTIALIAS``,
            ``dtype`` "float32" or "bfloat16". Further ``bn_group_size`` (examples that share batch statistics in
            training; default the whole global batch under ``jit``, each part of it in ``shard_map``), ``bn_momentum``
            (of the running statistics; default 0.9) and, for bottlenecks, ``stride_placement``, "v1" (the paper's) or
            "v1.5".

    Raises UserError for an unknown name, field or value, naming the nearest valid one, for a field that this network
    does not have, and for fields that do not go together.
    """
    found = variant(name)
    fields = {**found.fields, **overrides}
    known = field_names(found.model, fields)  # A given block or normalisation has others than the named network's.
    for field in overrides:
        if field not in known:
            given = " with the given parts" if {"block", "norm"} & overrides.keys() else ""
            raise UserError(_unknown_field(field, f"{name}{given}", known))
    fields = {field: value for field, value in fields.items() if field in known}
    return make_model(found.model, fields if num_classes is None else fields | {"num_classes": num_classes}, kernels)


def _unknown_field(field: str, name: str, known: list[str]) -> str:
    names = ", ".join(known)
    if field in all_fields():
        return f"model field {field} is set, but {name} has no such field; remove it, its fields are {names}"
    close = difflib.get_close_matches(field, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown model field {field!r}; {hint}The fields of {name} are {names}"


def _variants() -> dict[str, Variant]:
    variants = {}
    for layers, (stage_sizes, block) in _IMAGENET_STAGES.items():
        variants[f"resnet{layers}"] = _imagenet(layers, stage_sizes, block=block)
    for layers in _CIFAR_LAYERS:
        variants[f"resnet{layers}"] = _cifar(layers)
    for prefix, shortcut, depths in (("plain", "none", _PLAIN_LAYERS), ("highway", "gated", _HIGHWAY_LAYERS)):
        for layers in depths:
            residual = variants[f"resnet{layers}"]
            variants[f"{prefix}{layers}"] = residual._replace(fields={**residual.fields, "shortcut": shortcut})
    for layers, sizes in _VGG_STAGES.items():
        variants[f"vgg{layers}"] = Variant(VGG, layers, {"stage_sizes": sizes, "num_classes": 1000})
    of_paper = {name: row._replace(in_paper=True) for name, row in variants.items()}
    return of_paper | _relatives() | _preactivation() | _relatives_on_cifar() | _others()


# Table 1: layers -> (blocks per stage, block).
_IMAGENET_STAGES: dict[int, tuple[tuple[int, ...], type[Block]]] = {
    18: ((2, 2, 2, 2), BasicBlock),
    34: ((3, 4, 6, 3), BasicBlock),
    50: ((3, 4, 6, 3), BottleneckBlock),
    101: ((3, 4, 23, 3), BottleneckBlock),
    152: ((3, 8, 36, 3), BottleneckBlock),
}
# Section 4.2: 6n+2 layers.
_CIFAR_LAYERS = (20, 32, 44, 56, 110, 1202)
_PLAIN_LAYERS = (18, 34, 20, 32, 44, 56, 110)
_HIGHWAY_LAYERS = (20, 32, 56)
# Table 1 of VGG's own paper, D and E: layers -> convolutions per stage.
_VGG_STAGES = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


# Of timm's names: layers -> (blocks per stage, block).
_STAGES: dict[int, tuple[tuple[int, ...], type[Block]]] = {
    10: ((1, 1, 1, 1), BasicBlock),
    14: ((1, 1, 1, 1), BottleneckBlock),
    26: ((2, 2, 2, 2), BottleneckBlock),
    **_IMAGENET_STAGES,
    200: ((3, 24, 36, 3), BottleneckBlock),
    201: ((3, 24, 36, 4), BottleneckBlock),
    269: ((3, 30, 48, 8), BottleneckBlock),
}
# The letter after the number. C and D are those of He et al., "Bag of Tricks" (arXiv 1812.01187), section 4.
_SUFFIXES: dict[str, dict[str, Any]] = {
    "": {},
    "c": {"stem": "deep"},
    "d": {"stem": "deep", "shortcut": "D"},
    "s": {"stem": "deep_wide"},
    "t": {"stem": "tiered", "shortcut": "D"},
}
# What comes before "resnet" or "resnext", or "aa" and "blur" after it.
_SE = {"attention": "se"}  # Hu et al., arXiv 1709.01507.
_ECA = {"attention": "eca"}  # Wang et al., arXiv 1910.03151.
_AA = {"antialias": "mean"}
_BLUR = {"antialias": "blur"}  # Zhang, arXiv 1904.11486.
# Which of them there are: (name, fields, {letter: layers}).
_RESNETS: tuple[tuple[str, dict[str, Any], dict[str, tuple[int, ...]]], ...] = (
    (
        "resnet",
        {},
        {
            "": (26, 200),
            "c": (50, 101, 152),
            "d": (18, 26, 34, 50, 101, 152, 200),
            "s": (50, 101, 152),
            "t": (10, 14, 26, 50),
        },
    ),
    ("seresnet", _SE, {"": (18, 34, 50, 101, 152), "d": (152, 200, 269), "t": (50,)}),
    ("ecaresnet", _ECA, {"d": (50, 101, 200, 269), "t": (26, 50)}),
    ("resnetaa", _AA, {"": (50,), "d": (34, 50, 101)}),
    ("seresnetaa", _SE | _AA, {"d": (50,)}),
    ("resnetblur", _BLUR, {"": (18, 50), "d": (50, 101)}),
)
# (name, fields, layers, letter, ((groups, channels of each), ...)). Xie et al., arXiv 1611.05431.
_RESNEXTS: tuple[tuple[str, dict[str, Any], int, str, tuple[tuple[int, int], ...]], ...] = (
    ("resnext", {}, 50, "", ((32, 4),)),
    ("resnext", {}, 50, "d", ((32, 4),)),
    # 32x8 to 32x32: Mahajan et al., arXiv 1805.00932.
    ("resnext", {}, 101, "", ((32, 4), (64, 4), (32, 8), (32, 16), (32, 32))),
    ("seresnext", _SE, 26, "d", ((32, 4),)),
    ("seresnext", _SE, 26, "t", ((32, 4),)),
    ("seresnext", _SE, 50, "", ((32, 4),)),
    ("seresnext", _SE, 101, "", ((32, 4), (64, 4), (32, 8))),
    ("seresnext", _SE, 101, "d", ((32, 8),)),
    ("seresnextaa", _SE | _AA, 101, "d", ((32, 8),)),
    ("seresnextaa", _SE | _AA | {"stem": "deep_wide"}, 201, "d", ((32, 8),)),
    ("ecaresnext", _ECA, 26, "t", ((32, 4),)),
    ("ecaresnext", _ECA | {"stage_sizes": (2, 2, 2, 2)}, 50, "t", ((32, 4),)),  # timm has it so.
)
# Bello et al., "Revisiting ResNets" (arXiv 2103.07579), Table 11: layers -> blocks per stage.
_RS_STAGES = {
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    270: (4, 29, 53, 4),
    350: (4, 36, 72, 4),
    420: (4, 44, 87, 4),
}


def _timm(depth: int, suffix: str = "", **fields: Any) -> Variant:
    """A network of timm's and torchvision's ResNet."""
    stage_sizes, block = _STAGES.get(depth, (None, BottleneckBlock))
    fields = {"stage_sizes": stage_sizes, "block": block, "stem": "imagenet", **_SUFFIXES[suffix], **fields}
    if fields["block"] is BottleneckBlock:
        fields["stride_placement"] = "v1.5"
    if "antialias" in fields:  # The stem is, too.
        fields["stem"] = f"{fields['stem']}_{fields['antialias']}"
    # Compile time grows with the number of unrolled blocks (docs/performance.md).
    return _imagenet(depth, **fields, scan_blocks=depth > 152)


def _relatives() -> dict[str, Variant]:
    """timm's networks that keep the order of the paper's blocks."""
    variants = {}
    for name, fields, sizes in _RESNETS:
        for suffix, depths in sizes.items():
            for depth in depths:
                variants[f"{name}{depth}{suffix}"] = _timm(depth, suffix, **fields)
    for name, fields, depth, suffix, groups in _RESNEXTS:
        for cardinality, base_width in groups:
            grouped = {"cardinality": cardinality, "base_width": base_width}
            variants[f"{name}{depth}{suffix}_{cardinality}x{base_width}d"] = _timm(depth, suffix, **fields, **grouped)
    for depth in (50, 101):  # Zagoruyko and Komodakis, arXiv 1605.07146, Table 8.
        variants[f"wide_resnet{depth}_2"] = _timm(depth, base_width=128)
    variants["resnet50_gn"] = _timm(50, norm=GroupNorm)  # Wu and He, arXiv 1803.08494.
    variants["ecaresnetlight"] = _timm(50, stage_sizes=(1, 1, 11, 3), shortcut="D", **_ECA)
    variants["senet154"] = _timm(  # Hu et al., arXiv 1709.01507, appendix.
        152, "s", shortcut="3x3", cardinality=64, base_width=4, reduce_first=2, **_SE
    )._replace(depth=154)
    for depth, stage_sizes in _RS_STAGES.items():
        attention = partial(SqueezeExcitation, ratio=0.25)
        fields = {"stage_sizes": stage_sizes, "stem": "deep_strided", "attention": attention}
        variants[f"resnetrs{depth}"] = _timm(depth, "d", **fields)
    return variants


def _preactivation() -> dict[str, Variant]:
    """timm's networks of pre-activation blocks (He et al., arXiv 1603.05027), on ImageNet."""
    blocks: dict[Any, type[Block]] = {
        BasicBlock: PreactivationBasicBlock,
        BottleneckBlock: PreactivationBottleneckBlock,
    }

    def network(depth: int, suffix: str = "", **fields: Any) -> Variant:
        stage_sizes, block = _STAGES[depth]
        common: dict[str, Any] = {"stage_sizes": stage_sizes, "num_classes": 1000, "width": 64, "shortcut": "B"}
        common |= {"block": blocks[block], "stem": "imagenet", **_SUFFIXES[suffix]}
        common["stem"] += "_preactivation"
        return Variant(PreactivationNet, depth, {**common, **fields})

    depths = (18, 34, 50, 101, 152)
    variants = {f"resnetv2_{depth}{suffix}": network(depth, suffix) for depth in depths for suffix in ("", "d")}
    variants["resnetv2_50t"] = network(50, "t")
    variants["resnetv2_50d_gn"] = network(50, "d", norm=GroupNorm)
    for name, norm in (("evos", EvoNormS0), ("frn", FilterResponseNorm)):  # Each is its own activation.
        variants[f"resnetv2_50d_{name}"] = network(50, "d", norm=norm, activation=_identity)
    bit: dict[str, Any] = {
        "stem": "bit",
        "norm": GroupNorm,
        "conv": StandardisedConv,
    }  # Kolesnikov et al., arXiv 1912.11370.
    for depth, factors in ((50, (1, 3)), (101, (1, 3)), (152, (2, 4))):
        for factor in factors:
            variants[f"resnetv2_{depth}x{factor}_bit"] = network(depth, width=64 * factor, **bit)
    return variants


def _identity(x: jax.Array) -> jax.Array:
    return x


def _relatives_on_cifar() -> dict[str, Variant]:
    """Later networks of CIFAR's three stages."""
    variants = {}
    before: dict[str, Any] = {"num_classes": 10, "width": 16, "stem": "cifar_preactivation"}
    # He et al., arXiv 1603.05027: 6n+2 layers of basic blocks, 9n+2 of bottlenecks (Tables 2 and 4).
    bottleneck = {"block": PreactivationBottleneckBlock, "shortcut": "B", "first_strides": True}
    for depth, of_one, blocks in (
        (110, 6, {"block": PreactivationBasicBlock, "shortcut": "A"}),
        (164, 9, bottleneck),
        (1001, 9, bottleneck),
    ):
        stages: dict[str, Any] = {"stage_sizes": ((depth - 2) // of_one,) * 3, **blocks}
        stages |= {"activated_stem": True, "scan_blocks": True}
        variants[f"preresnet{depth}"] = Variant(PreactivationNet, depth, {**before, **stages})
    # Zagoruyko and Komodakis, arXiv 1605.07146, Tables 1 and 4: 6n+4 layers, since shortcuts' are counted.
    for depth, widen in ((16, 4), (16, 8), (22, 8), (28, 2), (28, 10), (28, 12), (40, 1), (40, 2), (40, 4)):
        stages = {"stage_sizes": ((depth - 4) // 6,) * 3, "block": PreactivationBasicBlock, "shortcut": "B"}
        variants[f"wrn{depth}_{widen}"] = Variant(PreactivationNet, depth, {**before, **stages, "widen": widen})
    # Xie et al., arXiv 1611.05431, section 5.3: 9n+2 layers, of the blocks of the authors' release.
    for cardinality in (8, 16):
        grouped = {"cardinality": cardinality, "base_width": 64, "stride_placement": "v1.5"}
        fields = {"stage_sizes": (3, 3, 3), "width": 64, "block": BottleneckBlock, "shortcut": "B", **grouped}
        variants[f"resnext29_{cardinality}x64d"] = _cifar(29, **fields)
    # Huang et al., arXiv 1603.09382, section 4: the last block is kept with probability 0.5. In the authors' release a
    # block is left out of a whole batch, which moves none of its statistics, and a shortcut that strides takes means.
    for depth in (110, 1202):
        variants[f"resnet{depth}_sd"] = _cifar(depth, drop_path=0.5)
    return variants


def _others() -> dict[str, Variant]:
    """Networks that are neither the paper's nor timm's: the place for new ones."""
    return {}


def _imagenet(depth: int, stage_sizes: tuple[int, ...], **fields: Any) -> Variant:
    """A network of Table 1."""
    common = {"stage_sizes": stage_sizes, "num_classes": 1000, "width": 64, "stem": "imagenet", "shortcut": "B"}
    return Variant(ResNet, depth, {**common, **fields})


def _cifar(depth: int, **fields: Any) -> Variant:
    """A network of section 4.2."""
    common: dict[str, Any] = {"stage_sizes": ((depth - 2) // 6,) * 3, "num_classes": 10, "width": 16, "stem": "cifar"}
    # Compile time grows with the number of unrolled blocks (docs/performance.md).
    common |= {"shortcut": "A", "block": BasicBlock, "scan_blocks": depth >= 110}
    return Variant(ResNet, depth, {**common, **fields})
