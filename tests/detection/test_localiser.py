"""The per-class proposal network and the R-CNN of localisation, against slow NumPy references."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import create_model
from resnet_jax.detection.anchors import Anchors
from resnet_jax.detection.backbones import ResNetC4, VGGBackbone
from resnet_jax.detection.boxes import decode
from resnet_jax.detection.localiser import (
    LOCALISATION_RPN,
    Localiser,
    PerClass,
    PerClassHead,
    RegionSample,
    RegionSettings,
    region_losses,
    sample_regions,
    surest,
    trained_part,
)
from resnet_jax.detection.rpn import Proposals
from resnet_jax.errors import UserError

ANCHORS = Anchors(((8.0, 20.0),), (0.5, 1.0))
HW = np.array([[32, 32], [32, 24]])
LABELS = np.array([[0, 2], [1, 1]])


def overlap(one, other):
    """Intersection over union of two boxes, by hand."""
    sides = [max(0.0, min(one[i + 2], other[i + 2]) - max(one[i], other[i])) for i in range(2)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return sides[0] * sides[1] / (sum(areas) - sides[0] * sides[1])


def test_a_per_class_layer_is_a_dense_layer_of_each_class():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(2, 3, 5)).astype(np.float32), np.array([[3, 0, 3], [1, 2, 0]])
    layer = PerClass(4, 6)
    variables = layer.init(jax.random.key(0), x, labels)
    bias = rng.normal(size=(4, 6)).astype(np.float32)
    variables = {"params": {"kernel": 100 * variables["params"]["kernel"], "bias": bias}}
    found = layer.apply(variables, x, labels)
    assert found.shape == (2, 3, 3, 6)
    kernel = np.asarray(variables["params"]["kernel"])
    for image, of in np.ndindex(2, 3):
        label = labels[image, of]
        np.testing.assert_allclose(found[image, of], x[image] @ kernel[label] + bias[label], rtol=2e-5, atol=1e-5)


def test_the_head_s_outputs_are_in_the_order_of_the_anchors():
    x, labels = np.random.default_rng(1).normal(size=(1, 2, 3, 4)).astype(np.float32), np.array([[2]])
    head = PerClassHead(2, 5, 3)
    variables = head.init(jax.random.key(0), x, labels)
    scores, deltas = head.apply(variables, x, labels)
    assert scores.shape == (1, 1, 12) and deltas.shape == (1, 1, 12, 4)
    # Of a single position's neighbourhood, alone.
    params = jax.device_get(variables["params"])
    padded = np.pad(x[0], ((1, 1), (1, 1), (0, 0)))
    for row, column in np.ndindex(2, 3):
        window = padded[row : row + 3, column : column + 3]
        hidden = np.maximum(np.einsum("hwi,hwio->o", window, params["conv"]["kernel"]) + params["conv"]["bias"], 0)
        first = 2 * (3 * row + column)
        np.testing.assert_allclose(scores[0, 0, first : first + 2], hidden @ params["cls"]["kernel"][2], atol=1e-5)
        boxes = (hidden @ params["box"]["kernel"][2]).reshape(2, 4)
        np.testing.assert_allclose(deltas[0, 0, first : first + 2], boxes, atol=1e-5)


def test_the_surest_box_is_within_the_image_and_not_empty():
    boxes = np.float32([[[[0, 0, 9, 9], [25, 0, 40, 30], [30, 2, 40, 9], [3, 3, 50, 50]]]])
    scores = np.float32([[[1, 3, 9, 2]]])
    found = surest(boxes, scores, np.array([[20, 30]]), 0.5)
    np.testing.assert_array_equal(found.boxes, [[[25, 0, 30, 20]]])  # The third is beyond the image.
    np.testing.assert_array_equal(found.scores, [[3]])


def test_regions_are_drawn_from_the_valid_proposals_and_told_what_they_are():
    rng = np.random.default_rng(2)
    corner, side = rng.uniform(0, 20, (2, 40, 2)), rng.uniform(4, 20, (2, 40, 2))
    boxes = np.concatenate([corner, corner + side], axis=2).astype(np.float32)
    valid = np.ones((2, 40), bool)
    valid[0, 10:], valid[1, 3:] = False, False
    gt = np.float32([[[2, 2, 18, 20], [8, 8, 30, 30]], [[0, 0, 5, 5], [0, 0, 0, 0]]])
    gt_valid = np.array([[True, True], [False, False]])
    proposals = Proposals(jnp.asarray(boxes), jnp.zeros((2, 40)), jnp.asarray(valid))
    settings = RegionSettings(samples=4, positive=0.4)
    draw = jax.jit(lambda key: sample_regions(proposals, gt, gt_valid, settings, key))
    drawn = {i: set() for i in range(2)}
    positives = 0
    for seed in range(60):
        sample = jax.device_get(draw(jax.random.key(seed)))
        assert sample.mask.sum(axis=1).tolist() == [4, 3]
        assert not np.asarray(sample.positive)[1].any()
        for image in range(2):
            for slot in np.flatnonzero(sample.mask[image]):
                box = np.asarray(sample.boxes[image, slot])
                index = int(np.abs(boxes[image] - box).sum(axis=1).argmin())
                assert valid[image, index]
                drawn[image].add(index)
                shared = [overlap(box, other) for other in gt[image][gt_valid[image]]]
                assert bool(sample.positive[image, slot]) == (max(shared, default=0) >= 0.4)
                if sample.positive[image, slot]:
                    positives += 1
                    again = decode(sample.deltas[image, slot], box, settings.weights)
                    np.testing.assert_allclose(again, gt[image, int(np.argmax(shared))], atol=1e-3)
    assert drawn == {0: set(range(10)), 1: {0, 1, 2}} and positives


def test_the_losses_of_regions_are_those_of_a_slow_loop():
    rng = np.random.default_rng(3)
    scores, deltas, targets = rng.normal(size=(2, 3)), rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
    mask, positive = np.array([[1, 1, 0], [1, 1, 1]], bool), np.array([[1, 0, 0], [0, 1, 1]], bool)
    sample = RegionSample(np.zeros((2, 3, 4)), mask, positive, np.where(positive[..., None], targets, 0))
    found = region_losses(jnp.asarray(scores), jnp.asarray(deltas), sample, 1.0)
    classifier = box = 0.0
    for place in np.ndindex(2, 3):
        if mask[place]:
            probability = 1 / (1 + np.exp(-scores[place]))
            classifier -= np.log(probability if positive[place] else 1 - probability)
        if positive[place]:
            for difference in np.abs(deltas[place] - targets[place]):
                box += difference**2 / 2 if difference < 1 else difference - 0.5
    np.testing.assert_allclose([found["classifier"], found["box"]], [classifier / 5, box / 5], rtol=1e-5)


def test_a_stage_that_there_is_not_is_refused():
    model, images = localiser(rcnn=False), jnp.zeros((1, 32, 32, 3))
    for stage, message in (("box", "stage is 'box'; it must be 'rpn' or 'rcnn'"), ("rcnn", "has no R-CNN; give it a")):
        arguments = images, jnp.ones((1, 2)), jnp.zeros((1, 1), int), stage
        with pytest.raises(UserError, match=message):
            jax.eval_shape(lambda given=arguments: model.init(jax.random.key(0), *given))


def localiser(rcnn=True):
    def backbone():
        network = create_model("resnet18", 0, width=4, stage_sizes=(1, 1), stem="cifar")
        return ResNetC4(network.frozen(("stem",), norms=True))

    rpn = LOCALISATION_RPN._replace(test_pre_nms=20, test_post_nms=6)
    regions = RegionSettings(size=16, samples=4, positive=0.02)
    return Localiser(backbone(), 3, ANCHORS, 8, rpn, backbone() if rcnn else None, regions)


@pytest.fixture(scope="module")
def made():
    """A localiser with an R-CNN, variables in which nothing is almost 0, and images."""
    model = localiser()
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    variables = jax.jit(
        lambda: model.init(jax.random.key(0), images, LABELS, jnp.zeros((2, 2, 1, 4)), method="outputs")
    )()
    places = flax.traverse_util.flatten_dict(jax.device_get(variables))
    heads = ("rpn_head", "box_score", "box_deltas")
    places = {place: 20 * leaf if place[1] in heads else leaf for place, leaf in places.items()}
    return model, flax.traverse_util.unflatten_dict(places), images


@pytest.mark.extensive
def test_each_class_is_answered_as_if_it_alone_were_asked_and_the_rcnn_answers_with_proposals_moved(made):
    model, variables, images = made
    for stage in ("rpn", "rcnn"):
        run = jax.jit(lambda labels, stage=stage: model.apply(variables, images, HW, labels, stage=stage))
        found = run(LABELS)
        assert found.boxes.shape == (2, 2, 4) and found.scores.shape == (2, 2)
        assert np.all(np.asarray(found.boxes)[1, :, 2] <= 24)
        for column in range(2):
            alone = run(LABELS[:, column : column + 1])
            np.testing.assert_allclose(alone.boxes[:, 0], found.boxes[:, column], atol=1e-3)
            np.testing.assert_allclose(alone.scores[:, 0], found.scores[:, column], atol=1e-5)
        assert not np.allclose(found.boxes[0, 0], found.boxes[0, 1])
        np.testing.assert_array_equal(found.boxes[1, 0], found.boxes[1, 1])
    # The R-CNN's answer, from what its network says of each proposal, one by one.
    proposals = jax.jit(lambda: model.apply(variables, images, HW, LABELS, method="propose"))()
    one = jax.jit(lambda boxes: model.apply(variables, images, boxes, LABELS, method="_region_outputs"))
    best = None
    for slot in np.flatnonzero(proposals.valid[0, 1]):
        box = proposals.boxes[:, :, slot : slot + 1]
        score, delta = one(box)
        if best is None or score[0, 1, 0] > best[0]:
            best = score[0, 1, 0], decode(delta, box, (10, 10, 5, 5))[0, 1, 0]
    np.testing.assert_allclose(found.scores[0, 1], best[0], atol=1e-5)
    np.testing.assert_allclose(found.boxes[0, 1], np.clip(best[1], 0, 32), atol=1e-3)


@pytest.mark.extensive
def test_losses_are_of_the_image_s_own_class_and_change_only_their_part(made):
    model, variables, images = made
    gt, valid = np.float32([[[4, 4, 20, 20]], [[2, 6, 14, 30]]]), np.ones((2, 1), bool)
    labels = LABELS[:, 1]
    for stage, names in (("rpn", {"objectness", "rpn_box"}), ("rcnn", {"classifier", "box"})):

        def total(params, stage=stage):
            own = {**variables, "params": params}
            losses = model.apply(
                own, images, HW, labels, gt, valid, stage, method="losses", rngs={"sample": jax.random.key(0)}
            )
            return sum(losses.values()), losses

        (_, losses), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(variables["params"])
        assert losses.keys() == names and all(np.isfinite(value) for value in losses.values())
        part = flax.traverse_util.flatten_dict(trained_part(model, variables, stage))
        moved = {place for place, leaf in flax.traverse_util.flatten_dict(gradients).items() if np.any(leaf)}
        # The stem, batch normalisation and the other stage: a gradient, if any, is stopped by the task.
        assert {place for place in moved if part[place]}
        own = {"rpn": {"rpn_head", "rpn_backbone"}, "rcnn": {"backbone", "box_score", "box_deltas"}}[stage]
        assert {place[0] for place in moved} == own == {place[0] for place, moves in part.items() if moves}
        head = gradients["rpn_head"]["cls"] if stage == "rpn" else gradients["box_score"]
        assert np.any(head["kernel"][2]) and np.any(head["kernel"][1]) and not np.any(head["kernel"][0])


def test_eight_anchors_an_image_at_most_half_of_them_positive():
    assert (LOCALISATION_RPN.samples, LOCALISATION_RPN.fraction) == (8, 0.5)
    assert LOCALISATION_RPN.test_post_nms == 200 and RegionSettings().size == 224


@pytest.mark.extensive
def test_a_region_s_features_are_the_classification_network_s():
    images = np.random.default_rng(4).normal(size=(2, 32, 32, 3)).astype(np.float32)
    for network, of in (
        (create_model("resnet18", 0, width=4, stage_sizes=(1, 1)), ResNetC4),
        (create_model("vgg16", 0, width=4, hidden=8, stage_sizes=(1, 1)), VGGBackbone),
    ):
        backbone = of(network)
        variables = jax.jit(lambda network=network: network.init(jax.random.key(0), images))()
        inside = {name: {"network": tree} for name, tree in variables.items()}
        found = jax.jit(lambda backbone=backbone, inside=inside: backbone.apply(inside, images, method="whole"))()
        expected = jax.jit(lambda network=network, variables=variables: network.apply(variables, images))()
        np.testing.assert_allclose(found, expected, atol=1e-5)
