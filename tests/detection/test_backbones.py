import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.detection.anchors import Anchors
from resnet_jax.detection.backbones import FPN, ResNetC4, VGGBackbone, trainable, with_weights
from resnet_jax.detection.faster_rcnn import FasterRCNN
from resnet_jax.detection.localiser import Localiser
from resnet_jax.detection.roi import Pooling
from resnet_jax.errors import UserError
from resnet_jax.models import create_model
from resnet_jax.models.stacking import stack_blocks

SIZE = 36  # No multiple of 32: maps are rounded up.
FIELDS = {"width": 4, "stage_sizes": (1, 2, 1, 1)}


def network(**fields):
    return create_model("resnet50", 0, **FIELDS, **fields)


def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, SIZE, SIZE, 3)), jnp.float32)


@pytest.fixture(scope="module")
def weights():
    """Of a classification network, with a classifier."""
    model = create_model("resnet50", 5, **FIELDS)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images())
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.uniform(0.1, 0.5, leaf.shape).astype(np.float32), shapes)


def empty(module):
    shapes = jax.eval_shape(module.init, jax.random.key(0), images())
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)


@pytest.mark.extensive
def test_the_parts_of_c4_are_the_whole_network(weights):
    model = create_model("resnet50", 5, **FIELDS)
    backbone = ResNetC4(network())
    assert backbone.strides == (16,)

    @jax.jit
    def both(weights):
        inside = {name: {"network": {k: v for k, v in part.items() if k != "head"}} for name, part in weights.items()}
        (c4,) = backbone.apply(inside, images())
        features = backbone.apply(inside, c4, method="head")
        return c4, features, model.apply(weights, images(), features=True)

    c4, features, outputs = both(weights)
    np.testing.assert_allclose(c4, outputs["C4"], rtol=1e-5)
    np.testing.assert_allclose(features, outputs["C5"].mean(axis=(1, 2)), rtol=1e-5)


@pytest.mark.extensive
def test_vgg_is_cut_in_two_parts():
    fields = {"width": 4, "hidden": 6, "stage_sizes": (1, 1, 2)}
    whole = create_model("vgg16", 0, **fields)
    variables = jax.jit(whole.init)(jax.random.key(0), images())
    backbone, inside = VGGBackbone(whole), {"params": {"network": variables["params"]}}
    (conv5,) = jax.jit(backbone.apply)(inside, images())
    assert conv5.shape == (2, 9, 9, 16) and backbone.strides == (4,)
    pooled = jax.image.resize(conv5, (2, 7, 7, 16), "nearest")
    features = backbone.apply(inside, pooled, method="head")
    hidden = pooled.reshape(2, -1)
    for name in ("fc6", "fc7"):
        hidden = jnp.maximum(hidden @ variables["params"][name]["kernel"] + variables["params"][name]["bias"], 0)
    np.testing.assert_allclose(features, hidden, rtol=1e-4, atol=1e-6)


def test_levels_of_a_pyramid():
    backbone = FPN(network(), channels=8)
    maps = jax.eval_shape(lambda: backbone.init_with_output(jax.random.key(0), images()))[0]
    assert [x.shape for x in maps] == [(2, n, n, 8) for n in (9, 5, 3, 2, 1)]
    assert backbone.strides == (4, 8, 16, 32, 64) and backbone.roi_levels == 4


@pytest.mark.parametrize("scanned", [False, True])
def test_classification_weights_fit(weights, scanned):
    variables = empty(ResNetC4(network(scan_blocks=scanned)))
    # The head of a C4 backbone is applied to regions, and is not made by a call on images.
    shared = {name: {k: v for k, v in part.items() if "stage4" not in k} for name, part in weights.items()}
    detector = {"params": {"backbone": variables["params"]}, "batch_stats": {"backbone": variables["batch_stats"]}}
    for given in (shared, stack_blocks(shared)):
        loaded = with_weights(detector, given)["params"]["backbone"]["network"]
        wanted = stack_blocks(shared)["params"] if scanned else shared["params"]
        assert set(loaded) == set(wanted) - {"head"}
        jax.tree.map(np.testing.assert_array_equal, loaded, {k: v for k, v in wanted.items() if k != "head"})


def test_weights_that_do_not_fit_are_named(weights):
    variables = empty(FPN(network(), channels=8))
    assert with_weights(variables, weights)["params"]["network"]["stem_conv"] is weights["params"]["stem_conv"]
    part = {**weights, "params": {k: v for k, v in weights["params"].items() if k != "stage3_block1"}}
    with pytest.raises(UserError, match=r"do not fit the backbone: stage3_block1/.* is missing .*; give those of"):
        with_weights(variables, part)
    wide = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), weights)
    with pytest.raises(UserError, match=r"is \(14, 7, 3, 4\) where the backbone has \(7, 7, 3, 4\)"):
        with_weights(variables, weights | {"params": weights["params"] | {"stem_conv": wide["params"]["stem_conv"]}})


def test_classification_weights_go_into_both_backbones_of_a_detector_and_of_a_localiser(weights):
    anchors = Anchors(((8.0,),))
    own, other = ResNetC4(network()), ResNetC4(network())
    models = {
        FasterRCNN(own, 2, anchors, 4, pooling=Pooling(size=2), rpn_backbone=other): jnp.zeros((1, 1, 4)),
        Localiser(own, 2, anchors, 4): jnp.zeros((1, 1), int),
    }
    for model, second in models.items():
        last = jnp.ones((1, 2)) if isinstance(model, FasterRCNN) else jnp.zeros((1, 1, 1, 4))
        variables = jax.eval_shape(
            lambda m=model, a=second, b=last: m.init(jax.random.key(0), images()[:1], a, b, method="outputs")
        )
        loaded = with_weights(variables, weights)
        for name in {"backbone", "rpn_backbone"} & set(variables["params"]):
            for collection in ("params", "batch_stats"):
                # A proposal network's has no last stage, which is applied to regions.
                wanted = {k for k in weights[collection] if k != "head" and (name == "backbone" or "stage4" not in k)}
                found = loaded[collection][name]["network"]
                assert set(found) == wanted and all(found[key] is weights[collection][key] for key in wanted)
        deeper = {**weights["params"], "stage2_block3": weights["params"]["stage2_block2"]}
        with pytest.raises(UserError, match=r"stage2_block3/.* where the backbone has no such variable"):
            with_weights(variables, {**weights, "params": deeper})


@pytest.mark.parametrize(
    ("backbone", "name", "classes", "message"),
    [
        (FPN, "vgg16", 0, "needs a network of the family 'resnet', not of 'vgg'; use .*c4"),
        (ResNetC4, "vgg16", 0, "needs a network of the family 'resnet', not of 'vgg'; use .*c4"),
        (VGGBackbone, "resnet18", 0, "needs a network of the family 'vgg', not of 'resnet'; use .*c4"),
        (ResNetC4, "resnet18", 5, "has no classifier; make it with num_classes=0, not 5"),
    ],
)
def test_other_networks_are_refused(backbone, name, classes, message):
    module = backbone(create_model(name, classes, width=4))
    with pytest.raises(UserError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), images())
    if backbone is not FPN:
        with pytest.raises(UserError, match=message):
            jax.eval_shape(lambda: module.init(jax.random.key(0), images(), method="whole"))


@pytest.mark.parametrize("norms", [False, True])
def test_what_is_trained_of_a_backbone_is_what_its_network_does_not_freeze(norms):
    backbone = FPN(network().frozen(("stem", "stage2"), norms), channels=8)
    variables = {name: {"backbone": tree} for name, tree in empty(backbone).items()}
    mask = flax.traverse_util.flatten_dict(trainable(backbone, variables))
    assert len(mask) > 20 and not all(mask.values())
    for place, moves in mask.items():
        frozen = place[1] == "network" and place[2].startswith(("stem", "stage2_"))
        norm = place[1] == "network" and place[-1] in ("scale", "bias")
        assert moves == (not frozen and not (norms and norm)), place
