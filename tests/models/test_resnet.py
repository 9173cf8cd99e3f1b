from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.analysis.complexity import count_multiply_adds, count_parameters
from resnet_jax.errors import UserError
from resnet_jax.models import create_model, list_models
from resnet_jax.models.blocks import BasicBlock
from resnet_jax.models.shortcuts import SHORTCUTS, padded
from resnet_jax.models.stacking import stack_blocks, unstack_blocks

# Parameters and multiply-adds at the networks' image size (224 or 32): those of the layers of Table 1 and of section
# 4.2. torchvision counts as many parameters for its resnet18 to resnet152, and resnet50 has 4.09e9 multiply-adds there.
IMAGENET = [
    ("resnet18", {}, 11_689_512, 1_814_073_344),
    ("resnet34", {}, 21_797_672, 3_663_761_408),
    ("resnet50", {}, 25_557_032, 3_857_973_248),
    ("resnet50", {"stride_placement": "v1.5"}, 25_557_032, 4_089_184_256),
    ("resnet101", {}, 44_549_160, 7_570_194_432),
    ("resnet101", {"stride_placement": "v1.5"}, 44_549_160, 7_801_405_440),
    ("resnet152", {}, 60_192_808, 11_282_415_616),
    ("resnet152", {"stride_placement": "v1.5"}, 60_192_808, 11_513_626_624),
]
# Without projections: plain networks, and residual ones with option A.
WITHOUT_PROJECTIONS = [
    ("plain18", {}, 11_515_688, 1.8),
    ("plain34", {}, 21_623_848, 3.6),
    ("resnet18", {"shortcut": "A"}, 11_515_688, 1.8),
    ("resnet34", {"shortcut": "A"}, 21_623_848, 3.6),
]
CIFAR_PARAMETERS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962, 1202: 19_421_274}
CIFAR_MULTIPLY_ADDS = {20: 40_551_040, 56: 125_485_696, 110: 252_887_680}

RNG = partial(jax.random.key, impl="rbg")  # Compiles in a third of the default generator's time.
FIELDS = {"stage_sizes": (3, 2), "width": 4}
SMALL = create_model("resnet20", 5, **FIELDS)


def named(name, fields):
    return "-".join([name, *map(str, fields.values())])


def images(batch=4, size=8, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, size, size, 3)).astype(np.float32)


def draw_variables(model):
    """Random parameters and batch statistics of the unrolled layout; quicker than compiling ``init``."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images())
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape).astype(np.float32)
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return rng.normal(0, 0.2, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def train(model, variables, x, **kwargs):
    return model.apply(variables, x, train=True, mutable=["batch_stats"], **kwargs)


@pytest.mark.parametrize("name, fields, parameters, multiply_adds", IMAGENET, ids=[named(*row[:2]) for row in IMAGENET])
@pytest.mark.extensive
def test_imagenet_network_has_its_parameters_and_multiply_adds(name, fields, parameters, multiply_adds):
    model = create_model(name, **fields, scan_blocks=True)  # One block a stage to trace.
    assert count_parameters(model) == parameters
    assert count_multiply_adds(model, 224) == multiply_adds


@pytest.mark.parametrize(
    "name, fields, parameters, billions", WITHOUT_PROJECTIONS, ids=[named(*row[:2]) for row in WITHOUT_PROJECTIONS]
)
def test_network_without_projections_has_its_parameters_and_the_flops_of_table_1(name, fields, parameters, billions):
    model = create_model(name, **fields)
    assert count_parameters(model) == parameters
    assert round(count_multiply_adds(model, 224) / 1e9, 1) == billions


@pytest.mark.parametrize("layers", CIFAR_PARAMETERS)
def test_cifar_network_and_its_plain_twin_have_their_parameters(layers):
    names = [f"resnet{layers}"] + [f"plain{layers}"] * (f"plain{layers}" in list_models())
    for name in names:
        assert count_parameters(create_model(name, scan_blocks=True)) == CIFAR_PARAMETERS[layers]
    assert len(names) == (1 if layers == 1202 else 2)  # The paper has no plain-1202.


@pytest.mark.parametrize("layers", CIFAR_MULTIPLY_ADDS)
def test_cifar_network_has_its_multiply_adds(layers):
    assert count_multiply_adds(create_model(f"resnet{layers}"), 32) == CIFAR_MULTIPLY_ADDS[layers]


def test_features_of_an_imagenet_network_are_c1_to_c5_at_strides_2_to_32():
    model = create_model("resnet50", width=4)
    x = images(2, size=64)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    features = jax.eval_shape(partial(model.apply, features=True), variables, x)
    assert {name: output.shape for name, output in features.items()} == {
        "C1": (2, 32, 32, 4),
        "C2": (2, 16, 16, 16),
        "C3": (2, 8, 8, 32),
        "C4": (2, 4, 4, 64),
        "C5": (2, 2, 2, 128),
    }


def test_features_of_a_cifar_network_are_c1_to_c4_at_strides_1_to_4():
    model = create_model("resnet20", width=4)
    x = images(2, size=32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    features = jax.eval_shape(partial(model.apply, features=True), variables, x)
    assert {name: output.shape for name, output in features.items()} == {
        "C1": (2, 32, 32, 4),
        "C2": (2, 32, 32, 4),
        "C3": (2, 16, 16, 8),
        "C4": (2, 8, 8, 16),
    }


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_logits_are_the_classifier_on_the_average_of_the_last_feature(training):
    variables, x = draw_variables(SMALL), images()

    @partial(jax.jit, static_argnums=0)
    def run(features):
        return SMALL.apply(variables, x, train=training, features=features, mutable=["batch_stats"])[0]

    head = variables["params"]["head"]
    expected = np.mean(run(True)["C3"], axis=(1, 2)) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(run(False), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.extensive
def test_training_mode_uses_the_batch_and_evaluation_the_running_statistics():
    variables, x = draw_variables(SMALL), images()
    evaluate = jax.jit(SMALL.apply)
    np.testing.assert_allclose(evaluate(variables, x)[:2], evaluate(variables, x[:2]), rtol=1e-4, atol=1e-5)
    training = jax.jit(partial(train, SMALL))
    logits, updated = training(variables, x)
    assert np.abs(logits[:2] - training(variables, x[:2])[0]).max() > 0.01
    moved = jax.tree.map(lambda new, old: bool(np.any(new != old)), updated["batch_stats"], variables["batch_stats"])
    assert all(jax.tree.leaves(moved))


@pytest.fixture(scope="module")
def unrolled():
    """Variables of SMALL with logits, updated statistics and gradients of a training step on ``images()``."""
    variables = draw_variables(SMALL)
    return variables, *step(SMALL, variables)


def step(model, variables):
    def loss(params):
        logits, updated = train(model, variables | {"params": params}, images())
        return jnp.mean(nn.log_softmax(logits)[:, 0]), (logits, updated["batch_stats"])

    gradients, (logits, stats) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    return logits, {"params": gradients, "batch_stats": stats}


@pytest.mark.parametrize(
    "fields", [{"remat": True}, {"scan_blocks": True}, {"remat": True, "scan_blocks": True}], ids=str
)
@pytest.mark.extensive
def test_remat_and_scanned_blocks_train_as_the_unrolled_network(unrolled, fields):
    variables, expected_logits, expected = unrolled
    model = SMALL.clone(**fields)
    if model.scan_blocks:
        logits, updated = step(model, stack_blocks(variables))
        assert "stage1_blocks" in updated["params"]
        updated = unstack_blocks(updated)
    else:
        logits, updated = step(model, variables)
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-4, atol=1e-5)
    assert jax.tree.structure(updated) == jax.tree.structure(expected)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected["params"]))
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5 * scale), updated, expected)


def test_remat_recomputes_the_blocks_and_nothing_else():
    def checkpoints(model):
        program = jax.make_jaxpr(model.apply)(jax.eval_shape(model.init, jax.random.key(0), images()), images())
        return sum(equation.primitive.name in ("checkpoint", "remat2", "remat") for equation in program.eqns)

    assert checkpoints(SMALL) == 0
    assert checkpoints(SMALL.clone(remat=True)) == sum(SMALL.stage_sizes)


def test_scanned_blocks_are_initialised_each_with_its_own_weights():
    model = SMALL.clone(stage_sizes=(3,), scan_blocks=True)
    params = jax.jit(model.init)(RNG(0), images())["params"]
    second, third = params["stage1_blocks"]["conv1"]["kernel"]
    assert np.abs(second - third).max() > 0.1
    np.testing.assert_allclose(np.std([second, third]), np.sqrt(2 / (3 * 3 * 4)), rtol=0.2)


def test_bn_group_size_equals_training_on_each_group_alone():
    variables, x = draw_variables(SMALL), images(8)
    logits, _ = jax.jit(partial(train, create_model("resnet20", 5, **FIELDS, bn_group_size=4)))(variables, x)
    alone = jax.jit(partial(train, SMALL))
    expected = np.concatenate([alone(variables, half)[0] for half in (x[:4], x[4:])])
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_bn_group_size_that_does_not_divide_the_batch_is_a_user_error():
    variables = jax.eval_shape(SMALL.init, jax.random.key(0), images())
    with pytest.raises(UserError, match="batch of 4 is not divisible by bn_group_size 3"):
        jax.eval_shape(
            partial(train, create_model("resnet20", 5, **FIELDS, bn_group_size=3)),
            variables,
            images(4),
        )


@pytest.mark.parametrize("momentum", [0, 0.6])
def test_bn_momentum_is_how_much_of_the_running_statistics_every_layer_keeps(momentum):
    variables, x = draw_variables(SMALL), images()
    logits, usual = jax.jit(partial(train, SMALL))(variables, x)
    model = create_model("resnet20", 5, **FIELDS, bn_momentum=momentum)
    again, updated = jax.jit(partial(train, model))(variables, x)
    np.testing.assert_allclose(again, logits, rtol=1e-5, atol=1e-6)
    old = variables["batch_stats"]
    batch = jax.tree.map(lambda new, before: (new - 0.9 * before) / 0.1, usual["batch_stats"], old)
    expected = jax.tree.map(lambda before, of_batch: momentum * before + (1 - momentum) * of_batch, old, batch)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-3, atol=1e-4), updated["batch_stats"], expected)


def test_bfloat16_computes_in_bfloat16_and_keeps_parameters_statistics_and_logits_in_float32():
    variables, x = draw_variables(SMALL), images()
    model = SMALL.clone(dtype=jnp.bfloat16)
    initialised = jax.eval_shape(model.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(initialised)} == {jnp.dtype(jnp.float32)}
    features, _ = jax.eval_shape(partial(train, model, features=True), variables, x)
    assert {output.dtype for output in features.values()} == {jnp.dtype(jnp.bfloat16)}
    logits, updated = jax.jit(partial(train, model))(variables, x)
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, updated))} == {jnp.dtype(jnp.float32)}
    expected, _ = jax.jit(partial(train, SMALL))(variables, x)
    difference = np.abs(logits - expected).max() / np.abs(expected).max()
    assert 1e-5 < difference < 0.1  # Other rounding, the same network.


def test_plain_network_is_cut_by_a_zero_branch_where_a_residual_network_is_not():
    model = create_model("plain20", stage_sizes=(2, 2), width=4)
    variables = draw_variables(model)
    for name, block in variables["params"].items():
        if name.startswith("stage"):
            block["bn2"] = {"scale": np.zeros_like(block["bn2"]["scale"]), "bias": np.zeros_like(block["bn2"]["bias"])}

    def features(shortcut):
        return jax.jit(partial(model.clone(shortcut=SHORTCUTS[shortcut]).apply, features=True))(variables, images())

    cut, kept = features("none"), features("A")
    np.testing.assert_array_equal(cut["C2"], 0)
    np.testing.assert_array_equal(cut["C3"], 0)
    np.testing.assert_array_equal(kept["C2"], kept["C1"])  # ReLU of an identity that a ReLU has passed.


def test_zero_init_last_bn_starts_the_network_at_its_shortcuts():
    model = create_model("resnet20", stage_sizes=(2,), width=4, zero_init_last_bn=True)

    @jax.jit
    def features():
        variables = model.init(RNG(0), images())
        return model.apply(variables, images(), features=True)

    np.testing.assert_array_equal(features()["C2"], features()["C1"])


@pytest.mark.parametrize("name, stem, kernel, strides", [("resnet18", "cifar", 3, 1), ("resnet20", "imagenet", 7, 2)])
def test_stem_can_be_overridden(name, stem, kernel, strides):
    model = create_model(name, stem=stem, stage_sizes=(1, 1), width=4)
    variables = jax.eval_shape(model.init, jax.random.key(0), images(size=32))
    assert variables["params"]["stem_conv"]["kernel"].shape == (kernel, kernel, 3, 4)
    features = jax.eval_shape(partial(model.apply, features=True), variables, images(size=32))
    pool = 2 if stem == "imagenet" else 1
    assert features["C1"].shape[1] == 32 // strides
    assert features["C2"].shape[1] == 32 // strides // pool
    assert features["C3"].shape[1] == 32 // strides // pool // 2


@pytest.mark.extensive
def test_drop_path_grows_with_depth_in_both_layouts_and_is_off_in_evaluation():
    class Seen(BasicBlock):
        def join(self, x, residual, drop_path):
            # Each block doubles what those before it have added, so the sum tells all rates.
            return 2 * padded(x, residual.shape[-1], self.strides) + drop_path

    for scan_blocks in (False, True):
        model = SMALL.clone(block=Seen, drop_path=0.5, scan_blocks=scan_blocks)
        variables = draw_variables(SMALL)
        variables = stack_blocks(variables) if scan_blocks else variables
        maps = train(model, variables, images(), features=True)[0]
        expected, rates = maps["C1"], iter([0.1, 0.2, 0.3, 0.4, 0.5])
        for stage, num_blocks in enumerate(SMALL.stage_sizes):
            for block in range(num_blocks):
                strides = 2 if stage and not block else 1
                expected = 2 * padded(expected, SMALL.width * 2**stage, strides) + next(rates)
            np.testing.assert_allclose(maps[f"C{stage + 2}"], expected, rtol=1e-5)
        plain = SMALL.clone(scan_blocks=scan_blocks)
        np.testing.assert_array_equal(
            jax.jit(plain.clone(drop_path=0.5).apply)(variables, images()), jax.jit(plain.apply)(variables, images())
        )


@pytest.mark.extensive
def test_dropout_hides_features_from_the_classifier_in_training_alone():
    """Without a head the network gives the features as the classifier would read them."""
    model = SMALL.clone(num_classes=0)
    dropping, variables = model.clone(dropout=0.25), draw_variables(model)
    whole, _ = train(model, variables, images())
    seen, _ = train(dropping, variables, images(), rngs={"dropout": jax.random.key(0)})
    hidden = np.asarray(seen) == 0
    assert 0.1 < hidden.mean() < 0.4
    np.testing.assert_allclose(seen, np.where(hidden, 0, whole / 0.75), rtol=1e-5)
    np.testing.assert_array_equal(
        jax.jit(dropping.apply)(variables, images()), jax.jit(model.apply)(variables, images())
    )


@pytest.mark.extensive
def test_scanned_and_recomputed_blocks_drop_paths_of_their_own():
    x = np.tile(images(1), (64, 1, 1, 1))
    for fields in ({"scan_blocks": True}, {"remat": True}, {"remat": True, "scan_blocks": True}):
        model = SMALL.clone(stage_sizes=(3,), drop_path=0.9, **fields)
        variables = jax.eval_shape(model.init, jax.random.key(0), x)
        variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), variables)

        @jax.jit
        def run(variables, seed, model=model):
            loss = lambda v: jnp.sum(train(model, v, x, rngs={"drop_path": jax.random.key(seed)})[0])  # noqa: E731
            return jax.value_and_grad(loss)(variables)

        value, gradients = run(variables, 0)
        assert np.isfinite(value) and run(variables, 1)[0] != value
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients["params"]))


@pytest.mark.extensive
@pytest.mark.parametrize("scan_blocks", [False, True])
def test_each_block_draws_which_paths_it_drops(scan_blocks):
    class Marks(BasicBlock):
        def join(self, x, residual, drop_path):
            # Each block doubles what those before it have added, so the sum tells which were kept.
            return 2 * x + (self.weighted(jnp.ones_like(residual), drop_path) > 0)

    model = SMALL.clone(block=Marks, stage_sizes=(3,), drop_path=0.6, scan_blocks=scan_blocks)
    variables = draw_variables(SMALL.clone(stage_sizes=(3,)))
    variables = stack_blocks(variables) if scan_blocks else variables
    maps = train(model, variables, images(512, size=1), features=True, rngs={"drop_path": jax.random.key(0)})[0]
    kept = np.rint(np.asarray(maps["C2"] - 8 * maps["C1"])[:, 0, 0, 0]).astype(int)
    first, second, third = (kept >> 2 & 1, kept >> 1 & 1, kept & 1)
    np.testing.assert_allclose([bits.mean() for bits in (first, second, third)], [0.8, 0.6, 0.4], atol=0.1)
    # Independent: with one draw for all, a block would be kept only where the one before it is.
    np.testing.assert_allclose(np.corrcoef([first, second, third]), np.eye(3), atol=0.15)


def test_response_layers_are_the_norms_after_3x3_convolutions_in_order():
    assert list(SMALL.response_layers().items())[:3] == [
        (("stem_bn",), "stem"),
        (("stage1_block1", "bn1"), "stage1_block1/conv1"),
        (("stage1_block1", "bn2"), "stage1_block1/conv2"),
    ]
    assert len(SMALL.response_layers()) == 1 + 2 * 5
    bottleneck = create_model("resnet50", stage_sizes=(1, 1), stride_placement="v1.5")
    assert bottleneck.response_layers() == {
        ("stage1_block1", "bn2"): "stage1_block1/conv2",
        ("stage2_block1", "bn2"): "stage2_block1/conv2",
    }


def test_layouts_by_name():
    assert SMALL.scanned().unrolled() == SMALL and SMALL.scanned() == SMALL.clone(scan_blocks=True)
