"""The detection task on drawn shapes: its parts, losses and batches, what is frozen, and evaluation on many devices."""

import functools
from functools import partial
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import build, parallel
from resnet_jax.config import load_config, override
from resnet_jax.data.dataset import Share
from resnet_jax.data.decode.boxes import Whole, whole_box
from resnet_jax.data.decode.images import crop_and_resize
from resnet_jax.data.normalization import Normalization
from resnet_jax.data.sources.detection import shapes
from resnet_jax.detection.second_stage import detect
from resnet_jax.detection.tta import multi_scale, refine
from resnet_jax.errors import UserError
from resnet_jax.evaluation.detection.detections import Detections
from resnet_jax.evaluation.detection.scores import Scored
from resnet_jax.experiment.initial import read_start
from resnet_jax.tasks.task import Member
from resnet_jax.train.bn_statistics import recompute_batch_stats
from resnet_jax.train.state import init_state, replace_variables
from resnet_jax.train.step import StepSettings, train_step

NORMALIZATION = Normalization(np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32))
TINY = {
    "batch_size": 8, "eval_batch_size": 8, "model.width": 4, "model.stage_sizes": (1, 1), "data.short_sides": (48,),
    "data.max_side": 64, "data.canvas_stride": 16, "task.rpn.channels": 8, "task.rpn.samples": 16,
    "task.rpn.train_pre_nms": 32, "task.rpn.train_post_nms": 16, "task.rpn.test_pre_nms": 32,
    "task.rpn.test_post_nms": 16, "task.box.samples": 8, "task.box.candidates": 30, "task.box.min_score": 0.0,
    "task.box.detections": 6,
}  # fmt: skip
FPN = {"task.fpn_channels": 8, "task.fpn_hidden": 16, "task.anchor_sizes": (8.0, 16.0, 24.0), "task.pooling.size": 4}
C4 = {"task.anchor_sizes": (8.0, 20.0), "task.pooling.size": 4}


def config_of(kind, **changes):
    own = FPN if kind == "fpn" else C4
    return override(load_config(f"configs/detection_quickstart.py:{kind}"), TINY | own | changes)


@pytest.fixture(scope="module", autouse=True)
def few_shapes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(shapes.SIZES, "train", 16)
        patch.setitem(shapes.SIZES, "validation", 11)
        yield


@pytest.fixture(scope="module")
def dataset():
    return config_of("fpn").data.load()


def made(config, mesh, dataset):
    """The task, an optimizer, and the state at the start."""
    model = build.make_model(config, 3)
    task = build.make_task(config, model, dataset, NORMALIZATION, mesh)
    optimizer = build.make_optimizer(config, task.model, task.trained(dataset.image_shape))
    return task, optimizer, init_state(task, optimizer, 0, 0.0, 0.0, dataset.image_shape, mesh)


def batches_of(dataset, steps, mesh):
    batches = dataset.training_batches(3, 8, 0, steps, Share())
    return [parallel.from_local(batch, parallel.sharded_batch(mesh)) for batch in batches]


def run(config, mesh, dataset, steps, changed=lambda variables: variables):
    """The metrics of each step, the first state, the one after two steps, and the last. changed: before the first."""
    task, optimizer, start = made(config, mesh, dataset)
    start = replace_variables(start, changed, mesh)

    @partial(jax.jit, out_shardings=parallel.replicated(mesh))
    def step(state, batch):
        batch = task.prepare(jax.random.key(0), batch)
        return train_step(task, optimizer, lambda _: jnp.float32(0.05), StepSettings(log_every=1), state, batch)

    states, metrics = [start], []
    for batch in batches_of(dataset, steps, mesh):
        state, found = step(states[-1], batch)
        states.append(state)
        metrics.append({name: float(value) for name, value in found.items()})
    return metrics, start, states[2], states[-1]


@pytest.fixture(scope="module")
def on_one_device(one_device, dataset):
    """``run`` of each kind, once for all tests."""
    return functools.cache(lambda kind: run(config_of(kind), one_device, dataset, 24))


@pytest.mark.extensive
@pytest.mark.parametrize("kind", ["fpn", "c4"])
def test_the_loss_falls_and_its_parts_are_the_metrics(kind, on_one_device):
    metrics, *_ = on_one_device(kind)
    totals = [one["train_loss"] for one in metrics]
    assert np.mean(totals[-6:]) < 0.85 * np.mean(totals[:3])
    parts = ("objectness", "rpn_box", "classifier", "box")
    np.testing.assert_allclose(sum(metrics[0][f"train_{part}"] for part in parts), totals[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "count"),
    [("fpn", 2), ("fpn", 8), ("c4", 8)],
)
@pytest.mark.extensive
def test_several_devices_train_as_one_on_the_same_batch(kind, count, on_one_device, dataset):
    expected, _, state, _ = on_one_device(kind)
    found, _, other, _ = run(config_of(kind), parallel.data_mesh(jax.devices()[:count]), dataset, 2)
    for one, two in zip(expected, found, strict=False):
        assert one.keys() == two.keys()
        np.testing.assert_allclose([two[name] for name in one], list(one.values()), rtol=1e-3, atol=1e-5)
    for one, two in zip(jax.tree.leaves(state.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4)


def awkward(variables):
    """With values that have been trained in batch normalisation, and one too small to be a normal number."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            return leaf
        value = rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        value.flat[0] = 1e-40 if path[-1].key != "var" else 1
        return value

    return jax.tree_util.tree_map_with_path(draw, jax.device_get(variables))


def bits(array):
    return np.asarray(array).tobytes()


@pytest.mark.slow
def test_frozen_parameters_and_statistics_keep_every_bit_for_a_hundred_steps(one_device, dataset):
    frozen = config_of(
        "c4", **{"finetune.freeze": ("stem",), "finetune.freeze_bn": True, "optimizer.weight_decay": 0.01}
    )
    metrics, start, _, end = run(frozen, one_device, dataset, 100, awkward)
    assert int(end.step) == 100 and all(np.isfinite(one["train_loss"]) for one in metrics)
    statistics = [flax.traverse_util.flatten_dict(state.batch_stats) for state in (start, end)]
    assert statistics[0] and all(bits(statistics[0][place]) == bits(statistics[1][place]) for place in statistics[0])
    before, after = (flax.traverse_util.flatten_dict(state.params) for state in (start, end))
    same = {"/".join(place) for place in before if bits(before[place]) == bits(after[place])}
    network = {place[2:] for place in before if place[:2] == ("backbone", "network")}
    # The stem, and scales and biases of batch normalisation; kernels and everything new move.
    norms = {place for place in network if place[-1] in ("scale", "bias")}
    stem = {place for place in network if not place[0].startswith("stage")}
    assert len(stem) > 1 and same == {"/".join(("backbone", "network", *place)) for place in norms | stem}
    assert all(np.asarray(after["backbone", "network", *place]).flat[0] == np.float32(1e-40) for place in norms)


def test_frozen_layers_without_weights_are_refused(one_device, dataset):
    for changes in ({"finetune.freeze": ("stem",)}, {"finetune.freeze_bn": True}, {"task.trains": "detector"}):
        config = config_of("fpn", **changes)
        with pytest.raises(UserError, match=r"would stay random; set --config\.init\.name=weights"):
            read_start(config, build.make_model(config, 3), dataset.class_names, dataset.image_shape, one_device)


@pytest.mark.parametrize(("kind", "other"), [("fpn", "c4"), ("c4", "fpn")])
def test_the_kind_is_a_key_like_others(kind, other):
    config = config_of(kind, **{"task.kind": other})
    assert config == override(config_of(kind), {"task.kind": other}) and config.task.kind == other
    assert config.task.rpn == config_of(kind).task.rpn
    with pytest.raises(UserError, match=r"config\.task\.kind is 'c5'; it must be one of 'c4' or 'fpn'"):
        config_of(kind, **{"task.kind": "c5"})


def test_a_proposal_network_tells_no_classes_apart_and_two_backbones_are_not_torchvision_s(one_device, dataset):
    config = config_of("fpn", **{"task.trains": "rpn"})
    member = Member(build.make_model(config, 3), NORMALIZATION, {})
    with pytest.raises(UserError, match="trains is 'rpn', so that its classes are untrained; use a run of a detector"):
        next(config.task.predict(member, dataset.class_names, [], (48, 64)))
    with pytest.raises(UserError, match="so that only proposals can be scored; use --protocol=proposals"):
        config.task.score([member], dataset, "validation", one_device, 8)
    with pytest.raises(UserError, match="--scores_csv is of classes, which --protocol=proposals does not tell apart"):
        config.task.write_scores(Path("table.csv"), Scored({"recall": 50.0}, [], {}, None), dataset, "validation")
    assert config.task.without_data(None).picture == "recall.png"
    assert config_of("fpn").task.without_data(None).picture == "average_precision.png"
    two = config_of("fpn", **{"task.shared": False})
    with pytest.raises(UserError, match=r"have one backbone and this one two; set config\.task\.shared"):
        two.task.load_torch("resnet18", Path("weights.pth"), build.make_model(two, 3), {})


def test_thresholds_in_the_wrong_order_are_refused():
    for changes, message in (
        (
            {"task.box.negative": (0.5, 0.1)},
            r"box\.negative is \(0.5, 0.1\); it must be a range: the lower value first",
        ),
        ({"task.rpn.negative": 0.8}, r"rpn\.negative is 0.8; it must be at most rpn.positive, 0.7"),
    ):
        with pytest.raises(UserError, match=message):
            config_of("fpn", **changes)


def test_what_a_detector_cannot_have_is_refused(one_device, dataset):
    refused = {
        "transforms are for classification": {"transforms.flip.probability": 0.5},
        "one for each": {"task.anchor_sizes": (8.0, 16.0)},
        "reads one map": {"task.pooling.op": "pool"},
        "model.drop_path is set, but .* drops nothing": {"model.drop_path": 0.1},
        "model.dropout is set, but .* drops nothing": {"model.dropout": 0.1},
        "needs a network of the family 'resnet', not of 'vgg'; use .* task.kind 'c4'": {
            "model.name": "vgg16",
            "model.width": None,
            "model.stage_sizes": None,
        },
    }
    for message, changes in refused.items():
        with pytest.raises(UserError, match=message):
            made(config_of("fpn", **changes), one_device, dataset)
    frozen = {"finetune.freeze_bn": True, "bn_recompute_batches": 2}
    with pytest.raises(UserError, match="bn_recompute_batches is set"):
        build.check(config_of("fpn", **frozen), 1)
    with pytest.raises(UserError, match="names 'stage3', which the network does not have; its stages are stem, stage1"):
        build.check(config_of("fpn", **{"finetune.freeze": ("stage3",)}), 1)
    for changes in ({"task.name": "classification"}, {"data.kind": "resident", "data.name": "digits"}):
        with pytest.raises(UserError, match="this task needs"):
            build.check(override(config_of("fpn"), changes), 1)


@pytest.mark.extensive
def test_crowds_and_difficult_objects_are_not_trained_on_and_canvases_are_zero_beyond_photographs(one_device, dataset):
    task, *_ = made(config_of("fpn"), one_device, dataset)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(1, 256, (2, 6, 8, 3), dtype=np.uint8),
        "image_hw": np.array([[6, 5], [3, 8]], np.int32),
        "boxes": rng.random((2, 3, 4), np.float32),
        "labels": np.zeros((2, 3), np.int32),
        "valid": np.array([[True, True, True], [True, True, False]]),
        "crowd": np.array([[False, True, False], [False, False, False]]),
        "difficult": np.array([[False, False, True], [True, False, False]]),
    }
    found = task.prepare(jax.random.key(0), jax.tree.map(jnp.asarray, batch))
    assert np.array_equal(found["valid"], [[True, False, False], [False, True, False]])
    expected = (batch["image"] / np.float32(255) - 0.5) / 0.25
    expected[0, :, 5:], expected[1, 3:] = 0, 0
    np.testing.assert_allclose(found["image"], expected, rtol=1e-5, atol=1e-6)
    kept = made(config_of("fpn", **{"task.use_difficult": True}), one_device, dataset)[0]
    found = kept.prepare(jax.random.key(0), jax.tree.map(jnp.asarray, batch))
    assert np.array_equal(found["valid"], [[True, False, True], [True, True, False]])


def decided(variables):
    """With classes and boxes that differ between regions, as those of a trained detector."""
    params = {
        name: {**leaves, "kernel": 20 * leaves["kernel"]} if name in ("box_score", "box_deltas") else leaves
        for name, leaves in variables["params"].items()
    }
    return {**variables, "params": params}


TESTED = {"task.test_scales": (32, 48, 64), "task.test_canonical": 24.0, "task.test_vote": 0.2}  # None is a default.


def alone(task, variables, dataset, index, protocol):
    """The detections of one photograph, resized by itself, with the model's own functions; and how it was resized."""
    pixels = dataset.photographs("validation").source[index]["image"]

    def resized(side):
        size = Whole(48, 64).at(side).resized(*pixels.shape[:2])
        return NORMALIZATION(crop_and_resize(pixels, whole_box, size)[None]), np.array([size])

    image, hw = resized(48)
    images, sizes = zip(*(resized(side) for side in TESTED["task.test_scales"]), strict=True)
    model = task.model

    @jax.jit
    def found_in(variables, image, images):
        features = partial(model.apply, variables, method="features")
        maps = features(image)
        proposals = model.apply(variables, maps, image.shape[1:3], hw, method="propose")
        predict = partial(model.apply, variables, maps, image_hw=hw, method="predict")
        if "multi_scale" in protocol:
            pyramid = [(features(other), np.mean(size / hw, axis=1)) for other, size in zip(images, sizes, strict=True)]
            predict = partial(multi_scale, model, variables, pyramid, image_hw=hw, canonical=24.0)
        predictions = predict(proposals)
        settings = model.box
        if "refine" in protocol:
            predictions = refine(predict, predictions, hw, model.box)
            settings = settings._replace(vote=0.2)
        return detect(predictions, hw, settings)

    found = found_in(variables, image, images)
    scale = hw[0][[1, 0, 1, 0]] / np.array(pixels.shape[1::-1] * 2)
    valid = found.valid[0]
    return Detections(*(np.asarray(x[0])[valid] for x in (found.boxes, found.scores, found.labels))), scale


@pytest.mark.parametrize(("devices", "protocol"), [(1, "refine"), (1, "refine+multi_scale"), (8, "single")])
@pytest.mark.extensive
def test_each_photograph_is_scored_once_on_any_mesh_as_by_itself(devices, protocol, dataset):
    mesh, config = parallel.data_mesh(jax.devices()[:devices]), config_of("fpn", **TESTED)
    task, _, state = made(config, mesh, dataset)
    state = replace_variables(state, decided, mesh)
    member = Member(task.model, NORMALIZATION, state.variables)
    figures, summary, details = config.task.score([member], dataset, "validation", mesh, 4, protocol)
    assert details.found.indices == list(range(11)) and figures["num_examples"] == 11
    assert f"mAP {figures['mAP']:.2f} %" in summary
    variables = jax.device_get(state.variables)
    for index in (0, 10):
        expected, scale = alone(task, variables, dataset, index, protocol)
        found = details.found.detections[index]
        assert len(found.scores) == len(expected.scores) > 0
        np.testing.assert_allclose(found.scores, expected.scores, atol=2e-3)
        np.testing.assert_allclose(found.boxes * scale, expected.boxes, atol=0.1)


@pytest.mark.slow
def test_an_ensemble_of_twins_scores_as_one_and_protocols_are_known(one_device, dataset):
    config = config_of("fpn", **{"task.test_scales": (40, 48)})
    task, _, state = made(config, one_device, dataset)
    member = Member(task.model, NORMALIZATION, state.variables)
    scored = partial(config.task.score, dataset=dataset, split="validation", mesh=one_device, batch_size=8)
    with pytest.raises(UserError, match="no protocol 'ten_crop'; use single"):
        scored([member], protocol="ten_crop")
    one, two = (scored(members, protocol="refine+multi_scale") for members in ([member], [member, member]))
    assert one.figures["num_examples"] == two.figures["num_examples"] == 11
    for found, expected in zip(two.details.found.detections, one.details.found.detections, strict=True):
        # The best are the same; proposals of both come twice, so that fewer different ones are looked at further down.
        np.testing.assert_allclose(found.scores[:2], expected.scores[:2], atol=1e-4)


@pytest.mark.extensive
@pytest.mark.parametrize(
    ("name", "kind", "changes"),
    [("backbone", "fpn", {}), ("rpn_backbone", "c4", {"task.trains": "rpn", "task.shared": False})],
)
def test_statistics_of_a_batch_are_those_of_its_activations(one_device, dataset, name, kind, changes):
    task, _, state = made(config_of(kind, **changes), one_device, dataset)
    batch = task.prepare(jax.random.key(0), jax.tree.map(jnp.asarray, batches_of(dataset, 1, one_device)[0]))
    found = jax.jit(task.statistics)(state.variables, batch, jax.random.key(1))
    network = found[name]["network"]
    kernel = jax.device_get(state.params[name]["network"])
    # The stem's batch normalisation comes after one convolution.
    name = next(name for name in network if not name.startswith("stage"))
    conv = next(value["kernel"] for key, value in kernel.items() if "kernel" in value and not key.startswith("stage"))
    dilated = jax.lax.conv_general_dilated(
        batch["image"], conv, (2, 2), [(3, 3), (3, 3)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(network[name]["mean"], dilated.mean(axis=(0, 1, 2)), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(network[name]["var"], dilated.var(axis=(0, 1, 2)), rtol=1e-3, atol=1e-5)


@pytest.mark.extensive
@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"task.trains": "detector", "task.shared": False}, lambda place: place[0] == "rpn_backbone"),
        ({"finetune.freeze": ("stem", "stage1")}, lambda place: not place[2].startswith("stage2")),
    ],
)
def test_recomputed_statistics_keep_every_bit_of_what_is_left_alone(one_device, dataset, changes, kept):
    task, _, state = made(config_of("c4", **changes), one_device, dataset)
    state = replace_variables(state, awkward, one_device)
    new = recompute_batch_stats(task, dataset, 0, 8, 3, one_device, state)
    before, after = (flax.traverse_util.flatten_dict(each.batch_stats) for each in (state, new))
    assert before.keys() == after.keys() and any(map(kept, before))
    for place in before:
        assert (bits(before[place]) == bits(after[place])) == bool(kept(place)), place
