import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from resnet_jax.analysis.complexity import count_parameters
from resnet_jax.errors import UserError
from resnet_jax.kernels import PLAIN, fast_kernels
from resnet_jax.models import create_model, list_models, variant, zoo
from resnet_jax.models.attention import SqueezeExcitation
from resnet_jax.models.blocks import BasicBlock, BottleneckBlock
from resnet_jax.models.fields import definition
from resnet_jax.models.layers import BatchNorm
from resnet_jax.models.norms import GroupNorm
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.shortcuts import SHORTCUTS, gated, none, projection
from resnet_jax.models.stems import STEMS

OF_PAPER = [name for name in list_models() if variant(name).in_paper]
LATER = [name for name in list_models() if not variant(name).in_paper and name not in zoo._others()]


@pytest.mark.parametrize("name", OF_PAPER)
@pytest.mark.extensive
def test_every_name_has_the_depth_and_the_attributes_of_its_network(name):
    known, model = variant(name), create_model(name)
    of_images = (1, model.image_size, model.image_size, 3)
    shapes = jax.eval_shape(model.scanned().init, jax.random.key(0), jnp.zeros(of_images))
    beside = ("projection_conv", "gate_conv")  # Shortcuts' layers are not on the longest path.
    layers = sum(
        leaf.shape[0] if leaf.ndim == 5 else 1
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes["params"])
        if path[-1].key == "kernel" and path[-2].key not in beside
    )
    assert known.depth == layers and name.endswith(str(layers))
    assert known.family == model.family == ("vgg" if name.startswith("vgg") else "resnet")
    assert known.image_size == model.image_size
    assert model.has_batch_norm == ("batch_stats" in shapes)
    assert set(known.fields) <= set(known.own_fields)


@pytest.mark.parametrize("name", [name for name in OF_PAPER if variant(name).family == "resnet"])
def test_residual_networks_have_the_fields_of_table_1_and_section_4_2(name):
    model, on_cifar = create_model(name), variant(name).image_size == 32
    assert (model.shortcut is none) == name.startswith("plain") == (variant(name).fields["shortcut"] == "none")
    assert (model.shortcut is gated) == name.startswith("highway")
    assert (model.num_classes, model.width, len(model.stage_sizes)) == ((10, 16, 3) if on_cifar else (1000, 64, 4))
    assert model.strides == ((1, 1, 2, 4) if on_cifar else (2, 4, 8, 16, 32))
    assert model.kernels is PLAIN


@pytest.mark.parametrize("name", LATER)
def test_every_later_name_says_its_depth_and_makes_a_network_of_that_row(name):
    known, model = variant(name), create_model(name)
    assert str(known.depth) in name or name == "ecaresnetlight"
    assert (
        known.family
        == model.family
        == ("preactivation" if name.startswith(("resnetv2", "preres", "wrn")) else "resnet")
    )
    assert set(known.fields) <= set(known.own_fields)
    assert model == create_model(name) and hash(model) == hash(create_model(name))
    on_cifar = known.image_size == 32
    assert (model.num_classes, len(model.stage_sizes)) == ((10, 3) if on_cifar else (1000, 4))


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("preresnet110", 1.7e6),  # Table 1 of He et al., arXiv 1603.05027: 1.7 M.
        ("preresnet164", 1.7e6),  # Table 4: 1.7 M.
        ("wrn28_10", 36.5e6),  # Table 4 of Zagoruyko and Komodakis, arXiv 1605.07146.
        ("wrn40_4", 8.9e6),
        ("resnext29_8x64d", 34.4e6),  # Table 7 of Xie et al., arXiv 1611.05431.
        ("resnext29_16x64d", 68.1e6),
    ],
)
@pytest.mark.extensive
def test_networks_of_cifar_have_as_many_parameters_as_their_papers_say(name, parameters):
    assert count_parameters(create_model(name, scan_blocks=True)) == pytest.approx(parameters, rel=0.02)


def test_plain_and_highway_networks_differ_from_residual_ones_in_the_shortcut_alone():
    assert create_model("plain20", shortcut="A") == create_model("resnet20") == create_model("highway20", shortcut="A")
    assert create_model("plain34") == create_model("resnet34", shortcut="none")


def test_models_of_equal_fields_are_equal_and_hash_alike():
    fields = {"stride_placement": "v1.5", "bn_group_size": 32, "bn_momentum": 0.5}
    one, other = create_model("resnet50", **fields), create_model("resnet50", **fields)
    assert one == other and hash(one) == hash(other)
    assert one != create_model("resnet50", **fields | {"bn_momentum": 0.6})


def test_a_network_s_definition_is_what_it_computes_and_not_how_or_how_it_is_trained():
    trained_so = {"dtype": "bfloat16", "bn_momentum": 0.5, "dropout": 0.1, "remat": True, "scan_blocks": True}
    same = create_model("resnet50", 7, stride_placement="v1", kernels=fast_kernels("cpu", 1), **trained_so)
    assert definition(same.frozen(("stem",), norms=True)) == definition(create_model("resnet50"))
    assert definition(create_model("vgg16", 7)) == definition(create_model("vgg16"))
    others = {"stride_placement": "v1.5"}, {"shortcut": "none"}, {"norm": GroupNorm}, {"activation": linen.gelu}
    for fields in others:
        assert definition(create_model("resnet50", **fields)) != definition(create_model("resnet50"))
    assert definition(create_model("vgg16", hidden=8)) != definition(create_model("vgg16"))


def test_models_of_equal_partials_are_equal():
    def model(ratio):
        return create_model("resnet50", attention=functools.partial(SqueezeExcitation, ratio=ratio))

    assert model(0.25) == model(0.25) != model(0.5)
    assert hash(model(0.25)) == hash(model(0.25)) and definition(model(0.25)) == definition(model(0.25))
    of_float = create_model("resnet50", norm=functools.partial(GroupNorm, groups=32.0)).norm
    assert type(of_float.keywords["groups"]) is float
    assert type(create_model("resnet50", norm=functools.partial(GroupNorm, groups=32)).norm.keywords["groups"]) is int
    unhashable = functools.partial(SqueezeExcitation, dtype=[])
    assert create_model("resnet50", attention=unhashable).attention is unhashable


class ScaledBlock(BasicBlock):
    """With fields of its own."""

    scale: float = 1
    branches: int = -1
    wide: bool = False


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"branches": 2.0}, "branches is 2.0; it must be a whole number"),
        ({"scale": "x"}, "scale is 'x'; it must be a number"),
        ({"wide": 1}, "wide is 1; it must be True or False"),
    ],
)
def test_fields_of_a_new_block_are_of_the_types_of_their_annotations(fields, fault):
    given = {"scale": np.float32(0.5), "branches": np.int64(-3)}
    assert create_model("resnet20", block=ScaledBlock, **given).block.keywords == {"scale": 0.5, "branches": -3}
    with pytest.raises(UserError, match=fault):
        create_model("resnet20", block=ScaledBlock, **fields)


def test_fields_are_those_of_a_given_block_and_normalisation():
    strided = create_model("resnet20", block=BottleneckBlock, stride_placement="v1.5")
    assert strided.block.keywords == {"stride_placement": "v1.5"}
    assert create_model("resnet50_gn", norm=BatchNorm, bn_momentum=0.8).norm.keywords == {"momentum": 0.8}
    made = lambda **fields: BatchNorm(epsilon=0.1, **fields)  # noqa: E731
    by_function = create_model("resnet20", 10, norm=made, stage_sizes=(1,), width=4)
    assert by_function.norm is made and definition(by_function) == definition(by_function.clone(num_classes=3))
    jax.eval_shape(by_function.init, jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    # What only the named network's own parts have is left aside with them, and refused where it is given.
    assert create_model("resnext50_32x4d", block=BasicBlock).block is BasicBlock
    for fields in ({"block": BasicBlock, "cardinality": 32}, {"norm": GroupNorm, "bn_group_size": 32}):
        with pytest.raises(UserError, match=rf"{list(fields)[1]} is set, but resnet50 with the given parts has no"):
            create_model("resnet50", **fields)


def test_names_stand_for_parts_and_parts_may_be_given():
    model = create_model("resnet50", kernels=fast_kernels("cpu", 1), activation=linen.gelu, shortcut=gated)
    assert model.kernels is fast_kernels("cpu", 1) and model.activation is linen.gelu and model.shortcut is gated
    assert create_model("resnet50", stem=STEMS["cifar"]) == create_model("resnet50", stem="cifar")
    assert create_model("resnet50", shortcut="B").shortcut is SHORTCUTS["B"] is projection
    assert create_model("resnet20", block=BottleneckBlock).block is BottleneckBlock
    by_hand = ResNet((2, 2, 2, 2), 1000, block=BasicBlock)
    assert by_hand == create_model("resnet18")


def test_fields_of_the_norm_and_of_the_block_reach_them():
    model = create_model("resnet50", bn_momentum=0.5, bn_group_size=8, stride_placement="v1.5")
    assert model.norm.keywords == {"momentum": 0.5, "group_size": 8}
    assert model.block.func is BottleneckBlock and model.block.keywords == {"stride_placement": "v1.5"}
    assert create_model("resnet20", bn_group_size=None).norm.keywords == {"group_size": None}


def test_no_classes_make_a_network_of_features():
    for name, fields, features in (
        ("resnet20", {"width": 4, "stage_sizes": (1, 1)}, 8),
        ("resnet50", {"width": 4, "stage_sizes": (1,)}, 16),
        ("vgg16", {"width": 2, "hidden": 6, "dtype": "bfloat16"}, 6),
    ):
        model = create_model(name, num_classes=0, **fields)
        images = jnp.zeros((2, 32, 32, 3))
        outputs, variables = jax.eval_shape(lambda m=model, x=images: m.init_with_output(jax.random.key(0), x))
        assert outputs.shape == (2, features) and outputs.dtype == jnp.float32
        assert "head" not in variables["params"]


def test_create_model_takes_the_number_of_classes_and_dtypes_by_name():
    assert create_model("resnet50", 7).num_classes == 7
    assert create_model("resnet50", dtype="bfloat16").dtype == jnp.bfloat16
    assert create_model("resnet50", dtype=jnp.bfloat16).dtype == jnp.bfloat16
    assert create_model("resnet50").dtype == jnp.float32
    assert create_model("resnet20", stage_sizes=[1, 2]).stage_sizes == (1, 2)


def test_integers_may_be_numpy_s():
    model = create_model("resnet20", np.int64(7), width=np.int32(8), stage_sizes=(np.int64(1), 2))
    assert model == create_model("resnet20", 7, width=8, stage_sizes=(1, 2))
    assert all(type(number) is int for number in (model.num_classes, model.width, *model.stage_sizes))


def test_stems_of_pre_activation_networks_have_the_plain_names_too():
    assert create_model("resnetv2_50", stem="cifar") == create_model("resnetv2_50", stem="cifar_preactivation")
    assert create_model("preresnet110", stem="imagenet").stem is STEMS["imagenet_preactivation"]


def test_frozen_stages_are_a_network_s_own():
    assert create_model("resnet20", frozen_stages=["stem"]) == create_model("resnet20").frozen(("stem",), norms=False)
    for model in (create_model("resnet18"), create_model("vgg16")):
        for stages in (("layer1", "stage2"), "stage1", None):
            with pytest.raises(UserError, match=r"frozen stages are .*; they must be a tuple of some of st.*, head"):
                model.frozen(stages, norms=False)


@pytest.mark.parametrize(
    "name, fields, message",
    [
        ("resnet-50", {}, "'resnet-50'; did you mean 'resnet50'"),
        ("plain43", {}, "'plain43'; did you mean 'plain44'"),
        ("lstm", {}, "'lstm'; The models are resnet18, .*vgg19"),
        (
            "resnet20",
            {"dropot": 0.1},
            "field 'dropot'; did you mean 'dropout'.* of resnet20 are stage_sizes, ",
        ),
        ("resnet20", {"parent": None}, "field 'parent'"),
        ("resnet20", {"stem": "mnist"}, r"stem is 'mnist'; .* 'imagenet' or .* 'cifar' or "),
        ("resnet20", {"shortcut": "E"}, r"shortcut is 'E'; .* 'A' or 'B' or 'C' or 'none' or 'gated' or 'D' or '3x3'"),
        ("resnet20", {"shortcut": None}, "shortcut is None"),
        ("resnet20", {"stride_placement": "v1"}, "stride_placement is set, but resnet20 has no such field"),
        ("vgg16", {"shortcut": "A"}, "shortcut is set, but vgg16 has no such field; .* hidden, "),
        ("vgg16", {"bn_group_size": 8}, "bn_group_size is set, but vgg16 has no such field"),
        ("vgg16", {"remat": True}, "remat is set, but vgg16 has no such field"),
        ("vgg16", {"hidden": 0}, "hidden is 0; it must be a positive integer"),
        ("resnet20", {"drop_path": 1.0}, "drop_path is 1.0; it must be a number from 0 to below 1"),
        ("resnet50", {"stride_placement": "v2"}, r"stride_placement is 'v2'; .* 'v1' or 'v1.5'"),
        ("resnet20", {"num_classes": -1}, "num_classes is -1; it must be an integer of at least 0"),
        ("resnet20", {"num_classes": "10"}, "num_classes is '10'"),
        ("resnet20", {"width": 16.0}, "width is 16.0"),
        ("resnet20", {"width": True}, "width is True"),
        ("resnet20", {"bn_group_size": -32}, "bn_group_size is -32"),
        ("resnet20", {"bn_momentum": 1}, "bn_momentum is 1; it must be a number from 0 to below 1"),
        ("resnet20", {"bn_momentum": -0.1}, "bn_momentum is -0.1"),
        ("resnet20", {"bn_momentum": math.nan}, "bn_momentum is nan"),
        ("resnet20", {"bn_momentum": "0.9"}, "bn_momentum is '0.9'"),
        ("resnet20", {"bn_momentum": True}, "bn_momentum is True"),
        ("resnet20", {"bn_momentum": None}, "bn_momentum is None"),
        ("resnet20", {"stage_sizes": ()}, r"stage_sizes is \(\)"),
        ("resnet20", {"stage_sizes": 3}, "stage_sizes is 3"),
        ("resnet20", {"stage_sizes": (2, 0)}, r"stage_sizes is \(2, 0\)"),
        ("resnet20", {"dtype": "float16"}, "dtype is 'float16'; it must be 'float32' or 'bfloat16'"),
        ("resnet20", {"dtype": "half a float"}, "dtype is 'half a float'"),
        ("resnet20", {"dtype": None}, "dtype is None"),
        ("resnet20", {"remat": "no"}, "remat is 'no'"),
        ("resnet20", {"num_classes": np.bool_(True)}, "num_classes is "),
        ("resnet20", {"stage_sizes": (1, True)}, "stage_sizes is "),
        ("resnet20", {"frozen_stages": ("stemm",)}, "frozen stages are .* some of stem, stage1, stage2, stage3, head"),
        ("resnet20", {"frozen_norms": 1}, "frozen_norms is 1"),
        ("resnet20", {"activation": "relu"}, "activation is 'relu'; it must be a function"),
        ("resnet20", {"norm": "gn"}, "norm is 'gn'; it must be a module class"),
        ("resnet20", {"norm": BatchNorm(use_running_average=True)}, "norm is BatchNorm"),
        ("resnet20", {"conv": None}, "conv is None"),
        ("resnet50", {"block": "bottleneck"}, "block is 'bottleneck'; it must be a subclass of"),
        ("resnet50", {"block": BatchNorm}, "block is .*; it must be a subclass of"),
        ("resnet20", {"shortcut": ["B"]}, "shortcut is .'B'.; it must be 'A' or"),
        ("resnet20", {"stem": ["cifar"]}, "stem is .'cifar'.; it must be 'imagenet' or"),
        ("resnet20", {"antialias": ["mean"]}, "antialias is .'mean'.; it must be 'none' or"),
        ("resnet20", {"attention": 3}, "attention is 3; it must be 'none' or"),
        (
            "resnet20",
            {"attention": SqueezeExcitation()},
            "attention is Squeeze.*; it must be 'none' or 'se' or 'eca', or a module class or a func",
        ),
        ("resnet20", {"kernels": "fast"}, "kernels is 'fast'; it must be a resnet_jax.kernels.Kernels"),
        (
            "resnet50",
            {"stem": "imagenet_preactivation"},
            "stem is 'imagenet_preactivation', which does not end in a normalisation, .*; use 'imagenet' or",
        ),
        ("resnet20", {"stem": STEMS["bit"]}, "stem is 'bit', which does not end in a normalisation"),
        ("resnetv2_50", {"stem": "imagenet_blur"}, "stem is 'imagenet_blur', .*; use 'cifar_preactivation' or"),
        ("resnetv2_50", {"stem": STEMS["cifar"]}, "stem is 'cifar', which ends in a normalisation"),
        ("resnetv2_50", {"zero_init_last_bn": True}, "zero_init_last_bn is for blocks that end in a normalisation"),
        ("senet154", {"width": 8}, "32 filters are not divisible by cardinality 64"),
        ("resnet50", {"antialias": "blur"}, "use stride_placement v1.5"),
    ],
)
def test_create_model_names_what_is_wrong_in_one_line(name, fields, message):
    with pytest.raises(UserError, match=message) as caught:
        create_model(name, **fields)
    assert "\n" not in str(caught.value)
