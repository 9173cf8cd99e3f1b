"""Frozen stages, frozen batch normalisation and rates by depth, against plain loops and the evaluation-mode forward."""

import dataclasses
from functools import partial

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import parallel
from resnet_jax.errors import UserError
from resnet_jax.models.zoo import create_model
from resnet_jax.train.bn_statistics import recompute_batch_stats
from resnet_jax.train.finetune import FineTune, rate_scales
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.optimizers.masked import apply_updates, scaled
from resnet_jax.train.state import init_state, replace_variables
from resnet_jax.train.step import StepSettings, train_step

SGD_03 = SGD(weight_decay=0.03)
RATE = 0.05


def flat(tree):
    return flax.traverse_util.flatten_dict(jax.device_get(tree), sep="/")


def bits(array):
    return np.asarray(array).tobytes()


def model_of(layout="unrolled", **fields):
    model = create_model("resnet20", **{"width": 4, "stage_sizes": (1, 3, 2), **fields})
    return model.scanned() if layout == "scanned" else model


def batch(size=12):
    rng = np.random.default_rng(3)
    return {
        "image": rng.normal(size=(size, 8, 8, 3)).astype(np.float32),
        "label": rng.integers(0, 10, size).astype(np.int32),
    }


def trained(tiny_task, random_variables, settings, mesh, steps=2, step_settings=None, **fields):
    """(state before, state after ``steps`` steps on one batch) of a network with random statistics."""
    task = tiny_task(**{"stage_sizes": (1, 3), **fields})
    plain, task = task.model, dataclasses.replace(task, model=settings.model(task.model))
    optimizer = settings.optimizer(SGD_03.make(), {(): plain})
    step_settings = step_settings or StepSettings()
    given = parallel.to_global(random_variables(plain, image_shape=(8, 8, 3)), parallel.replicated(mesh))
    before = init_state(task, optimizer, 0, step_settings.ema_decay, 0.0, (8, 8, 3), mesh)
    before = replace_variables(before, lambda _: given, mesh)
    step = jax.jit(partial(train_step, task, optimizer, lambda _: jnp.float32(RATE), step_settings))
    after = before
    for _ in range(steps):
        after, _ = step(after, parallel.from_local(batch(), parallel.sharded_batch(mesh)))
    return task, before, after


@pytest.mark.parametrize("layout", ["unrolled", "scanned"])
@pytest.mark.parametrize("accumulate_steps", [1, 3])
@pytest.mark.extensive
def test_frozen_stages_keep_every_bit_and_the_others_do_not(
    tiny_task, random_variables, two_devices, layout, accumulate_steps
):
    settings = FineTune(freeze=("stem", "stage1", "head"))
    _, before, after = trained(
        tiny_task,
        random_variables,
        settings,
        two_devices,
        step_settings=StepSettings(ema_decay=0.9, accumulate_steps=accumulate_steps),
        scan_blocks=layout == "scanned",
        remat=layout == "scanned",
    )
    for place in ("params", "batch_stats"):
        for tree in (getattr(after, place), after.ema[place]):
            for name, leaf in flat(tree).items():
                same = bits(leaf) == bits(flat(getattr(before, place))[name])
                assert same == name.startswith(("stem", "stage1", "head")), name
    momentum = [leaf for name, leaf in flat(after.opt_state[2].trace).items() if not name.startswith("stage2")]
    assert momentum and not any(np.any(leaf) for leaf in momentum)


@pytest.mark.extensive
def test_frozen_batch_normalisation_keeps_its_bits_and_the_kernels_are_trained(tiny_task, random_variables, one_device):
    _, before, after = trained(tiny_task, random_variables, FineTune(freeze_bn=True), one_device)
    for name, leaf in flat(after.batch_stats).items():
        assert bits(leaf) == bits(flat(before.batch_stats)[name]), name
    for name, leaf in flat(after.params).items():
        assert (bits(leaf) == bits(flat(before.params)[name])) == ("kernel" not in name and "head" not in name), name


@pytest.mark.extensive
def test_a_frozen_stage_has_the_gradients_of_a_network_whose_frozen_part_is_a_constant(
    tiny_task, random_variables, one_device
):
    """One step of the rest equals SGD by hand, on the loss as a function of the trained parameters alone."""
    settings = FineTune(freeze=("stem", "stage1"))
    task, before, after = trained(tiny_task, random_variables, settings, one_device, steps=1)
    params = jax.device_get(before.params)
    live = {module: leaves for module, leaves in params.items() if module.startswith(("stage2", "head"))}

    def loss(live):
        variables = {"params": {**params, **live}, "batch_stats": before.batch_stats}
        return task.loss(variables, batch(), jax.random.key(0))[0]

    gradients = flat(jax.grad(loss)(live))
    for name, leaf in flat(live).items():
        expected = leaf - RATE * (gradients[name] + SGD_03.weight_decay * leaf)
        np.testing.assert_allclose(flat(after.params)[name], expected, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("layout", ["unrolled", "scanned"])
@pytest.mark.extensive
def test_with_all_batch_normalisation_frozen_training_computes_what_evaluation_does(random_variables, layout):
    model = model_of(layout)
    variables, images = random_variables(model), batch()["image"]
    frozen = model.frozen((), norms=True)
    logits, updated = frozen.apply(variables, images, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(logits, model.apply(variables, images, train=False))
    for name, leaf in flat(updated["batch_stats"]).items():
        assert bits(leaf) == bits(flat(variables["batch_stats"])[name])


@pytest.mark.extensive
def test_the_norms_of_frozen_stages_alone_use_their_running_averages(random_variables):
    model, images = model_of(), batch()["image"]
    variables = random_variables(model)
    frozen = model.frozen(("stem", "stage2"), norms=False)
    evaluated = model.apply(variables, images, train=False, features=True)
    _, updated = frozen.apply(variables, images, train=True, mutable=["batch_stats"])
    features, _ = frozen.apply(variables, images, train=True, features=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(features["C1"], evaluated["C1"])
    assert np.abs(features["C2"] - evaluated["C2"]).max() > 1e-3
    for name, leaf in flat(updated["batch_stats"]).items():
        same = bits(leaf) == bits(flat(variables["batch_stats"])[name])
        assert same == name.startswith(("stem", "stage2")), name


@pytest.mark.parametrize("layout", ["unrolled", "scanned"])
@pytest.mark.extensive
def test_layer_wise_rates_are_those_of_a_plain_loop_over_the_blocks(random_variables, layout):
    settings = FineTune(freeze=("stage1",), layer_decay=0.5, head_rate=3.0)
    model = model_of(layout)
    params = random_variables(model)["params"]
    # Counted by hand: stage3 has two blocks, stage2 three, stage1 one, then the stem.
    by_hand = {"head": 3.0, "stem_conv": 0.5**7, "stem_bn": 0.5**7, "stage1_block1": 0.0}
    by_hand |= {"stage3_block2": 0.5, "stage3_block1": 0.25}
    by_hand |= {f"stage2_block{j}": 0.5 ** (6 - j) for j in (1, 2, 3)}
    optimizer = scaled(SGD_03.make(), lambda tree: rate_scales(settings, {(): model}, tree))
    state = optimizer.init(params)
    rng = np.random.default_rng(0)
    expected = {name: leaf.astype(np.float64) for name, leaf in flat(params).items()}
    velocity = {name: np.zeros_like(leaf) for name, leaf in expected.items()}
    for _ in range(3):
        gradients = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)
        updates, state = optimizer.update(gradients, state, params, learning_rate=jnp.float32(RATE))
        params = apply_updates(params, updates)
        for name, gradient in flat(gradients).items():
            module = name.partition("/")[0]
            if module.endswith("_blocks"):
                stage = module.removesuffix("_blocks")
                rates = [by_hand[f"{stage}_block{j + 2}"] for j in range(len(gradient))]
                rate = np.array(rates).reshape(-1, *[1] * (gradient.ndim - 1))
            else:
                rate = by_hand[module]
            step = rate * RATE * (gradient + SGD_03.weight_decay * expected[name])
            velocity[name] = SGD_03.momentum * velocity[name] - step
            expected[name] = expected[name] + velocity[name]
    for name, leaf in flat(params).items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_of_a_detector_the_backbone_s_layers_have_these_rates_and_all_others_that_of_a_head():
    settings = FineTune(freeze=("stem",), layer_decay=0.5, head_rate=3.0)
    network = model_of()
    places = {("backbone", "network"): network, ("rpn_backbone", "network"): network}
    inside = {"stem_conv": {"kernel": np.zeros(1)}, "stage3_block2": {"conv1": {"kernel": np.zeros(1)}}}
    backbone = {"network": inside, "fc6": {"bias": np.zeros(1)}}
    params = {"backbone": backbone, "rpn_backbone": {"network": inside}, "rpn_head": {"kernel": np.zeros(1)}}
    found = flat(rate_scales(settings, places, params))
    own = {"backbone/fc6/bias": 3.0, "rpn_head/kernel": 3.0}
    for name in ("backbone", "rpn_backbone"):
        own |= {f"{name}/network/stem_conv/kernel": 0.0, f"{name}/network/stage3_block2/conv1/kernel": 0.5}
    assert found == own


def test_vgg_s_layers_are_counted_from_its_head():
    model = create_model("vgg16", 10)
    names = ["head", "fc7", "fc6", "conv5_3", "conv5_1", "conv4_3", "conv1_1"]
    assert [model.head_distances(name) for name in names] == [(0,), (1,), (2,), (3,), (5,), (6,), (15,)]
    assert [model.stage_of(name) for name in names[2:5]] == ["fc6", "stage5", "stage5"]


def test_recomputed_statistics_leave_out_what_is_frozen(tiny_task, random_images, random_variables, one_device):
    settings = FineTune(freeze=("stem", "stage1"))
    task = tiny_task()
    task = dataclasses.replace(task, model=settings.model(task.model))
    given = parallel.to_global(random_variables(task.model, image_shape=(8, 8, 3)), parallel.replicated(one_device))
    before = init_state(task, SGD_03.make(), 0, 0.0, 0.0, (8, 8, 3), one_device)
    before = replace_variables(before, lambda _: given, one_device)
    after = recompute_batch_stats(task, random_images, 0, 16, 2, one_device, before)
    for name, leaf in flat(after.batch_stats).items():
        same = bits(leaf) == bits(flat(before.batch_stats)[name])
        assert same == name.startswith(("stem", "stage1")), name


def test_without_settings_nothing_is_wrapped():
    model, optimizer = model_of(), SGD_03.make()
    assert FineTune().model(model) is model and FineTune().optimizer(optimizer, {(): model}) is optimizer


@pytest.mark.parametrize(
    ("settings", "name", "message"),
    [
        (FineTune(freeze=("stage9",)), "resnet20", "its stages are stem, stage1, stage2, stage3, head"),
        (FineTune(freeze=("stem", "stage1", "stage2", "stage3", "head")), "resnet20", "leave out the head"),
        (FineTune(freeze_bn=True), "vgg16", "no batch normalisation; remove it"),
    ],
)
def test_what_cannot_be_frozen_is_a_user_error(settings, name, message):
    with pytest.raises(UserError, match=message):
        settings.check({(): create_model(name)})


def test_a_backbone_has_no_head_to_freeze_and_may_be_frozen_as_a_whole():
    networks = {("backbone", "network"): create_model("resnet20", 0)}
    with pytest.raises(UserError, match=r"names 'head', .* its stages are stem, stage1, stage2, stage3$"):
        FineTune(freeze=("head",)).check(networks)
    FineTune(freeze=("stem", "stage1", "stage2", "stage3")).check(networks)


@pytest.mark.parametrize("name, fields", [("resnet20", {}), ("vgg16", {"hidden": 8})])
def test_no_gradient_is_computed_where_all_that_comes_before_is_frozen(name, fields):
    model = create_model(name, 10, stage_sizes=(1, 1), width=2, **fields)
    images = jnp.zeros((2, 32, 32, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def convolutions(model):
        """In the forward pass and in the gradient."""

        def loss(params):
            rngs = {"dropout": jax.random.key(0)}
            given = {**variables, "params": params}
            return model.apply(given, images, train=True, mutable=["batch_stats"], rngs=rngs)[0].sum()

        return str(jax.make_jaxpr(jax.grad(loss))(variables["params"])).count("conv_general_dilated[")

    first, second = model.stage_names[:2]
    # With the second stage alone frozen the gradient still goes through it to the first.
    assert convolutions(model.frozen((first, second), False)) < convolutions(model.frozen((second,), False))
