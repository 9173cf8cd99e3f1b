"""Relatives of the paper's networks, narrow and shallow: what every network can do, these can."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.errors import UserError
from resnet_jax.kernels import fast_kernels
from resnet_jax.models import create_model, variant
from resnet_jax.models.pooling import ANTIALIAS
from resnet_jax.models.stacking import stack_blocks

QUICK = "resnetaa34d"
OTHERS = (
    "seresnext26t_32x4d", "resnetv2_50x1_bit", "resnet14t", "resnet50c", "resnet50s", "ecaresnet26t", "resnetblur50d",
    "resnetblur18", "resnetrs50", "resnet50_gn", "senet154", "resnetv2_18d", "resnetv2_50t", "resnetv2_50d_gn",
    "resnetv2_50d_evos", "resnetv2_50d_frn", "preresnet110", "preresnet164", "wrn28_10", "resnext29_8x64d",
    "resnet110_sd", "wide_resnet50_2",
)  # fmt: skip
NETWORKS = [QUICK, *(pytest.param(name, marks=pytest.mark.extensive) for name in OTHERS)]


def narrow(name, **fields):
    width = 32 if name == "senet154" else 8  # It needs twice as many channels as it has groups.
    return create_model(name, 5, **{"width": width, "stage_sizes": (3, 1), "scan_blocks": False, **fields})


def images(count=4):
    return np.random.default_rng(0).normal(size=(count, 16, 16, 3)).astype(np.float32)


@pytest.mark.parametrize("name", NETWORKS)
def test_both_layouts_give_the_same_logits_with_either_kernels(name, random_variables):
    model = narrow(name)
    variables, x = random_variables(model), images()
    logits, features = jax.jit(lambda v, x: (model.apply(v, x), model.apply(v, x, features=True)))(variables, x)
    assert logits.shape == (4, 5) and logits.dtype == jnp.float32 and logits.std() > 1e-3
    assert list(features) == ["C1", "C2", "C3"]
    for stride, feature in zip(model.strides, features.values(), strict=True):
        assert feature.shape[:3] == (4, 16 // stride, 16 // stride)
    scanned = narrow(name, scan_blocks=True, kernels=fast_kernels("cpu", 1))
    np.testing.assert_allclose(
        jax.jit(scanned.apply)(stack_blocks(variables), x), logits, rtol=0, atol=1e-4 * np.abs(logits).max()
    )


@pytest.mark.parametrize("name", [QUICK, *OTHERS])
@pytest.mark.extensive
def test_training_with_stochastic_depth_and_recomputation_has_finite_gradients(name):
    fields = {"stage_sizes": (2, 1), "drop_path": 0.5, "remat": True, "scan_blocks": True}
    model = narrow(name, kernels=fast_kernels("cpu", 1), **fields)
    x = images(2)[:, :8, :8]
    variables = jax.jit(model.init)(jax.random.key(0), x)
    assert model.has_batch_norm == ("batch_stats" in variables)
    rest = {name: value for name, value in variables.items() if name != "params"}

    @jax.jit
    def gradients(params):
        def loss(params):
            rngs = {"drop_path": jax.random.key(1)}
            logits, _ = model.apply({"params": params, **rest}, x, True, rngs=rngs, mutable=["batch_stats"])
            return jnp.mean(logits**2)

        return jax.grad(loss)(params)

    found = gradients(variables["params"])
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(found["stage1_block1"]))


@pytest.mark.parametrize("name", [QUICK, *OTHERS])
def test_bfloat16_is_for_features_and_float32_for_parameters_statistics_and_logits(name):
    model = narrow(name, dtype="bfloat16", scan_blocks=True)
    features, variables = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), jnp.asarray(images()), features=True)
    )
    assert {feature.dtype for feature in features.values()} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_names_say_how_bottlenecks_stride_and_the_paper_s_stay_the_paper_s():
    assert "stride_placement" not in variant("resnet50").fields
    for name in (
        "resnet26",
        "resnet50d",
        "resnext50_32x4d",
        "wide_resnet50_2",
        "resnet50_gn",
        "resnetrs420",
        "senet154",
    ):
        assert variant(name).fields["stride_placement"] == "v1.5"


@pytest.mark.parametrize(("name", "activated"), [("preresnet110", True), ("wrn40_1", False), ("resnetv2_18", False)])
@pytest.mark.parametrize("remat", [False, True])
def test_the_first_shortcut_has_the_first_activation_where_the_paper_has_it_so(
    name, activated, remat, random_variables
):
    model = narrow(name, stage_sizes=(2,), width=4, stem="cifar", remat=remat)
    variables, x = random_variables(model, image_shape=(8, 8, 3)), images(2)[:, :8, :8]
    for block in ("stage1_block1", "stage1_block2"):  # Only the shortcuts are left.
        variables["params"][block]["conv2"]["kernel"] *= 0
    found = model.apply(variables, x, features=True)
    scale, bias = (variables["params"]["stage1_block1"]["bn1"][name] for name in ("scale", "bias"))
    mean, var = (variables["batch_stats"]["stage1_block1"]["bn1"][name] for name in ("mean", "var"))
    first = np.maximum((found["C1"] - mean) / np.sqrt(var + 1e-5) * scale + bias, 0)
    np.testing.assert_allclose(found["C2"], first if activated else found["C1"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, first", [("preresnet164", True), ("resnetv2_50", False)])
def test_bottlenecks_of_preactivation_stride_where_their_source_does(name, first, random_variables):
    model = create_model(name, 5, width=4, stage_sizes=(1, 1), stem="cifar", scan_blocks=False)
    variables, x = random_variables(model, image_shape=(8, 8, 3)), images(2)[:, :8, :8]
    _, state = model.apply(variables, x, capture_intermediates=True, mutable=["intermediates"])
    shape = state["intermediates"]["stage2_block1"]["conv1"]["__call__"][0].shape
    assert shape[1:3] == ((4, 4) if first else (8, 8))


def test_a_name_of_timm_s_with_other_stages_has_those():
    assert create_model("ecaresnext50t_32x4d") == create_model("ecaresnext26t_32x4d")


def test_layer_responses_are_of_batch_normalisations_after_3x3_layers():
    blocks = [(f"stage{i}_block{j}", "bn3") for i, j in ((1, 1), (1, 2), (1, 3), (2, 1))]
    assert list(narrow("resnetv2_50d").response_layers()) == [("stem_bn1",), ("stem_bn2",), *blocks]
    stem = {path: layer for path, layer in narrow("resnetrs50").response_layers().items() if len(path) == 1}
    assert stem == {
        ("stem_bn1",): "stem_conv1",
        ("stem_bn2",): "stem_conv2",
        ("stem_bn",): "stem_conv3",
        ("stem_pool_bn",): "stem_pool_conv",
    }
    assert list(narrow("resnet50").response_layers()) == [(block, "bn2") for block, _ in blocks]
    assert narrow("resnet50_gn").response_layers() == {} == narrow("resnetv2_50x1_bit").response_layers()


@pytest.mark.parametrize(
    "name, fields, message",
    [
        ("resnet50_gn", {"bn_momentum": 0.5}, "bn_momentum is set, but resnet50_gn has no such field"),
        ("resnetv2_50", {"antialias": "mean"}, "antialias is set, but resnetv2_50 has no such field"),
        ("resnet50d", {"attention": "cbam"}, "attention is 'cbam'; it must be 'none' or 'se' or 'eca'"),
        ("resnext50_32x4d", {"cardinality": 0}, "cardinality is 0; it must be a positive integer"),
        ("resnet50-d", {}, "did you mean 'resnet50d'"),
        ("resnetv2_50x2_bit", {}, "did you mean 'resnetv2_"),
    ],
)
def test_what_a_network_does_not_have_is_refused_in_one_line(name, fields, message):
    with pytest.raises(UserError, match=message) as caught:
        create_model(name, **fields)
    assert "\n" not in str(caught.value)


def test_residual_branches_are_not_left_out_where_nothing_else_is():
    with pytest.raises(UserError, match="drop_path is for blocks with a shortcut"):
        create_model("resnet50", shortcut="none", drop_path=0.1)


@pytest.mark.parametrize(
    "name, fields, message",
    [
        ("resnet50", {"antialias": "blur"}, "use stride_placement v1.5"),
        ("plain34", {"zero_init_last_bn": True}, "zero_init_last_bn is for blocks with a shortcut"),
        ("senet154", {"width": 8}, "32 filters are not divisible by cardinality 64; use a larger width"),
        ("resnetv2_18", {"zero_init_last_bn": True}, "zero_init_last_bn is for blocks that end in a normalisation"),
    ],
)
def test_parts_that_do_not_go_together_are_refused_when_a_network_made_by_hand_is_used(name, fields, message):
    with pytest.raises(UserError, match=message):
        narrow(name, **fields)
    model = narrow(name)
    parts = {field: ANTIALIAS[value] if field == "antialias" else value for field, value in fields.items()}
    of_block = {field: parts.pop(field) for field in ("antialias",) & parts.keys()}
    model = model.clone(**parts, block=partial(model.block, **of_block))
    with pytest.raises(UserError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), images())
