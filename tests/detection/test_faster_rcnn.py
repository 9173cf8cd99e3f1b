import math
from functools import partial

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.detection.anchors import Anchors
from resnet_jax.detection.backbones import FPN, ResNetC4, forgetful, trainable
from resnet_jax.detection.faster_rcnn import FasterRCNN
from resnet_jax.detection.named import (
    detectron2_c4,
    detectron2_fpn,
    paper_c4,
    paper_vgg,
    torchvision_fpn,
)
from resnet_jax.detection.roi import Pooling
from resnet_jax.detection.rpn import RPNSettings
from resnet_jax.detection.second_stage import BoxSettings
from resnet_jax.detection.targets import Targets
from resnet_jax.detection.training import training_losses
from resnet_jax.errors import UserError
from resnet_jax.models import create_model
from resnet_jax.parallel import replicated, sharded_batch

SIZE, CLASSES = 64, 3
SETTINGS = {
    "rpn_channels": 8,
    "rpn": RPNSettings(samples=16, train_pre_nms=40, train_post_nms=12, test_pre_nms=40, test_post_nms=10),
    "box": BoxSettings(samples=12, min_score=0.01, detections=7),
}


def network(**fields):
    return create_model("resnet50", 0, width=4, stage_sizes=(1, 1, 1, 1), **fields)


FROZEN = (("stem", "stage1"), True)  # As in most recipes.


def c4(**fields):
    anchors = Anchors(((16.0, 32.0),))
    return FasterRCNN(
        ResNetC4(network().frozen(*FROZEN)), CLASSES, anchors, pooling=Pooling("pool", 4), **SETTINGS, **fields
    )


def fpn(frozen=FROZEN):
    anchors = Anchors(((8.0,), (16.0,), (32.0,), (64.0,), (64.0,)))
    backbone = FPN(network().frozen(*frozen), channels=8, hidden=16)
    return FasterRCNN(backbone, CLASSES, anchors, pooling=Pooling(size=3), **SETTINGS)


def initialise(model, size=SIZE):
    arguments = jnp.zeros((1, size, size, 3)), jnp.zeros((1, 1, 4)), jnp.ones((1, 2))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), *arguments, method="outputs"))


def draw(model, seed=0):
    """Random variables, without compiling the initialisation."""
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(0, (1 / np.prod(shape.shape[:-1])) ** 0.5, shape.shape).astype(np.float32)
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.0, shape.shape).astype(np.float32)
        return rng.normal(0, 0.1, shape.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, initialise(model))


def batch(count=2, seed=0, truths=3, slots=4):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(count, SIZE, SIZE, 3)).astype(np.float32)
    low = rng.uniform(0, SIZE / 2, (count, slots, 2))
    boxes = np.concatenate([low, low + rng.uniform(12, SIZE / 2, low.shape)], axis=2).astype(np.float32)
    valid = np.arange(slots)[None] < np.full((count, 1), truths)
    targets = Targets(boxes, rng.integers(CLASSES, size=(count, slots)).astype(np.int32), valid)
    return images, np.tile(np.float32([SIZE, SIZE]), (count, 1)), targets


def parameters(model):
    """Those that are not of batch normalisation, which is frozen."""
    shapes = initialise(model)
    normalised = {place[:-1] for place in flax.traverse_util.flatten_dict(shapes.get("batch_stats", {}))}
    places = flax.traverse_util.flatten_dict(shapes["params"])
    return sum(math.prod(leaf.shape) for place, leaf in places.items() if place[:-1] not in normalised)


# torchvision's own count; the others follow from the layers that detectron2 and the paper describe.
@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda: torchvision_fpn(resnet(50)), 41_755_286),
        (lambda: detectron2_c4(resnet(50), 80), 33_791_644),
        (lambda: detectron2_c4(resnet(101), 80), 52_731_548),
        (lambda: paper_c4(resnet(101), 20), 47_343_954),
        (lambda: paper_c4(resnet(101), 20, context=True), 47_550_802),
    ],
    ids=["torchvision", "r50-c4", "r101-c4", "paper", "context"],
)
def test_parameters(make, expected):
    assert parameters(make()) == expected


def resnet(depth):
    return create_model(f"resnet{depth}", 0, scan_blocks=True)  # Traced in a third of the time.


def test_vgg_and_other_networks_are_backbones():
    vgg = create_model("vgg16", 0)
    # VGG-16 without its classifier; then 3x3, 9 scores and 36 deltas; 21 classes and 80 deltas.
    layers = 138_357_544 - 4097 * 1000 + 512 * 512 * 9 + 512 + 513 * 45 + 4097 * 101
    assert parameters(paper_vgg(vgg, 20)) == layers
    assert parameters(detectron2_fpn(create_model("resnet18", 0), 80)) > 11e6


@pytest.mark.parametrize("make", [c4, fpn])
@pytest.mark.extensive
def test_padding_of_ground_truth_changes_no_loss(make):
    model = make()
    variables = draw(model)
    images, hw, targets = batch()
    padded = Targets(*(np.concatenate([x, np.repeat(x[:, -1:], 80, axis=1)], axis=1) for x in targets[:2]), None)
    padded = padded._replace(valid=np.pad(targets.valid, ((0, 0), (0, 80))))
    run = jax.jit(lambda targets: training_losses(model, variables, images, hw, targets, jax.random.key(0))[0])
    losses, again = run(targets), run(padded)
    for name, loss in losses.items():
        assert np.isfinite(loss) and loss > 0, name
        np.testing.assert_allclose(again[name], loss, rtol=0, atol=1e-6)
    # And not only because there is nothing to be seen.
    assert abs(run(targets._replace(valid=targets.valid & False))["box"]) < 1e-9


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
@pytest.mark.extensive
def test_what_is_frozen_stays_to_the_bit(frozen):
    model = fpn(FROZEN if frozen else ((), False))
    variables = draw(model)
    mask = trainable(model.backbone, variables)
    images, hw, targets = batch()

    @jax.jit
    def step(variables, key):
        def total(params):
            losses, stats = training_losses(model, {**variables, "params": params}, images, hw, targets, key)
            return sum(losses.values()), stats

        (_, stats), gradient = jax.value_and_grad(total, has_aux=True)(variables["params"])
        params = jax.tree.map(
            lambda p, g, trained: p - 1e-3 * (g + 1e-2 * p) if trained else p, variables["params"], gradient, mask
        )
        return {"params": params, "batch_stats": stats}, gradient

    after = variables
    for i in range(3):
        after, gradient = step(after, jax.random.key(i))
    flat = {name: flax.traverse_util.flatten_dict(tree) for name, tree in (("mask", mask), ("gradient", gradient))}
    before = flax.traverse_util.flatten_dict(variables)
    seen = {True: 0, False: 0}
    for place, value in flax.traverse_util.flatten_dict(after).items():
        changed = not np.array_equal(value, before[place])
        if place[0] == "batch_stats":
            assert changed != frozen, place
            continue
        assert np.all(np.isfinite(value))
        seen[flat["mask"][place[1:]]] += 1
        assert changed == flat["mask"][place[1:]], place
        if not changed:
            assert not np.any(flat["gradient"][place[1:]])
    assert seen[True] > 20
    # The stem's and the first stage's 5 convolutions, and the scale and bias of 17 normalisations.
    assert seen[False] == (5 + 2 * 17 if frozen else 0)


@pytest.mark.extensive
def test_two_sizes_of_images_are_two_programs():
    model = c4()
    variables = draw(model)
    run = jax.jit(model.apply)
    rng = np.random.default_rng(0)
    for i in range(50):
        height, width = (48, 64) if i % 3 else (64, 48)
        hw = np.float32([[rng.integers(20, height + 1), rng.integers(20, width + 1)]])
        images = rng.normal(size=(1, height, width, 3)).astype(np.float32)
        images[0, int(hw[0, 0]) :] = 0
        images[0, :, int(hw[0, 1]) :] = 0
        found = run(variables, images, hw)
        assert found.boxes.shape == (1, 7, 4)
        assert np.all(found.boxes <= hw[0, [1, 0, 1, 0]])
        assert found.valid.any()
    assert run._cache_size() == 2


@pytest.mark.extensive
def test_trained_normalisation_sees_regions_and_their_context_together():
    """What is normalised by the statistics of a batch in training has them as its running averages afterwards."""
    backbone = ResNetC4(network())
    plain = FasterRCNN(
        backbone, CLASSES, Anchors(((16.0, 32.0),)), pooling=Pooling("pool", 4), **SETTINGS, context=True
    )
    model, variables = forgetful(plain), draw(plain)  # The averages are of the last batch alone.
    images, hw, targets = batch()
    maps = model.apply(variables, images, method="features")
    run = partial(model.apply, method="head")
    (logits, deltas), updated = run(variables, maps, targets.boxes, hw, True, mutable=["batch_stats"])
    stats = flax.traverse_util.flatten_dict(variables["batch_stats"])
    stats |= flax.traverse_util.flatten_dict(updated["batch_stats"])
    stats = flax.traverse_util.unflatten_dict(stats)
    found = run(variables | {"batch_stats": stats}, maps, targets.boxes, hw)
    np.testing.assert_allclose(found[0], logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1], deltas, rtol=1e-5, atol=1e-5)


@pytest.mark.extensive
def test_eight_devices_give_what_one_gives(eight_devices):
    model = c4(context=True)
    variables = draw(model)
    images, hw, targets = batch(8)
    key = jax.random.key(1)

    def run(variables, images, hw, targets):
        losses, _ = training_losses(model, variables, images, hw, targets, key)
        return losses, model.apply(variables, images, hw)

    alone = jax.jit(run)(variables, images, hw, targets)
    placed = jax.device_put((images, hw, targets), sharded_batch(eight_devices))
    shared = jax.jit(run)(jax.device_put(variables, replicated(eight_devices)), *placed)
    for name in alone[0]:
        np.testing.assert_allclose(shared[0][name], alone[0][name], rtol=1e-5)
    np.testing.assert_allclose(shared[1].boxes, alone[1].boxes, atol=1e-3)
    np.testing.assert_array_equal(shared[1].labels, alone[1].labels)


def test_targets_that_do_not_fit_the_images_are_refused():
    model = c4()
    images, hw, targets = batch()
    variables = initialise(model)

    def error(match, *arguments, **named):
        with pytest.raises(UserError, match=match):
            jax.eval_shape(lambda v: training_losses(model, v, *arguments, jax.random.key(0), **named), variables)

    first = Targets(*(value[0] for value in targets))
    error(r"labels has shape \(4,\); it must be \(B, G\)", images, hw, first)
    error(r"image_hw has shape \(1, 2\); it must be \(B, 2\)", images, hw[:1], targets)
    error(r"labels has shape \(1, 4\)", images, hw, Targets(*(value[:1] for value in targets)))
    error(
        r"boxes has shape \(2, 3, 4\); it must be \(B, G, 4\)", images, hw, targets._replace(boxes=targets.boxes[:, :3])
    )
    error(r"valid has shape \(2, 4, 1\)", images, hw, targets._replace(valid=targets.valid[..., None]))
    error(r"images has shape \(64, 64, 3\)", images[0], hw, targets)
    error("targets are a dict; give a resnet_jax.detection.targets.Targets", images, hw, targets._asdict())
    error("targets are a tuple; give a resnet_jax.detection.targets.Targets", images, hw, tuple(targets))
    error("trains is 'box'; it must be 'joint' or 'rpn' or 'detector'", images, hw, targets, trains="box")
