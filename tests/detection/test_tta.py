from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.detection.anchors import Anchors
from resnet_jax.detection.backbones import ResNetC4
from resnet_jax.detection.boxes import clip, decode
from resnet_jax.detection.faster_rcnn import FasterRCNN
from resnet_jax.detection.roi import Pooling
from resnet_jax.detection.rpn import RPNSettings
from resnet_jax.detection.second_stage import BoxSettings, Predictions
from resnet_jax.detection.tta import ensemble, ensemble_proposals, multi_scale, refine
from resnet_jax.models import create_model

HW = np.float32([[32, 48], [30, 40]])


def drawn(model, key, images):
    """Random variables of a model, and its maps and proposals of images; traced."""
    variables = model.init(key, images, jnp.zeros((2, 1, 4)), HW, method="outputs")
    # Larger than they start, so that classes and boxes differ.
    for name in ("box_score", "box_deltas"):
        variables["params"][name]["kernel"] *= 20
    maps = model.apply(variables, images, method="features")
    return variables, maps, model.apply(variables, maps, images.shape[1:3], HW, method="propose")


@pytest.fixture(scope="module")
def detector():
    """A model, and of two sizes of images their maps; the proposals and predictions of the first."""
    network = create_model("resnet18", 0, width=4, stage_sizes=(1, 1), stem="cifar")
    rpn = RPNSettings(test_post_nms=8)
    anchors = Anchors(((8.0, 16.0),), (1.0,))
    model = FasterRCNN(ResNetC4(network), 3, anchors, 8, rpn, Pooling("pool", 4), context=True)
    images = np.random.default_rng(0).normal(size=(2, 32, 48, 3)).astype(np.float32)
    larger = np.repeat(np.repeat(images, 2, axis=1), 2, axis=2)

    @jax.jit
    def run():
        variables, maps, proposals = drawn(model, jax.random.key(0), images)
        predictions = model.apply(variables, maps, proposals, HW, method="predict")
        return variables, maps, model.apply(variables, larger, method="features"), proposals, predictions

    return model, *run()


@pytest.mark.extensive
def test_refinement_looks_again_at_the_likeliest_box(detector):
    model, variables, maps, _, proposals, predictions = detector
    both = refine(partial(model.apply, variables, maps, image_hw=HW, method="predict"), predictions, HW, model.box)
    count = proposals.boxes.shape[1]
    jax.tree.map(lambda whole, part: np.testing.assert_array_equal(whole[:, :count], part), both, predictions)
    for i in range(2):
        for r in range(count):
            best = np.argmax(predictions.probabilities[i, r, 1:])
            moved = decode(predictions.deltas[i, r, best], proposals.boxes[i, r], model.box.weights)
            np.testing.assert_allclose(both.boxes[i, count + r], clip(moved[None], HW[i])[0], atol=1e-4)
    again = model.apply(variables, maps, proposals._replace(boxes=both.boxes[:, count:]), HW, method="predict")
    np.testing.assert_allclose(both.probabilities[:, count:], again.probabilities, atol=1e-5)


@pytest.mark.extensive
def test_two_adjacent_scales_are_merged_by_their_maximum(detector):
    model, variables, maps, larger, proposals, predictions = detector
    one, two = jnp.ones(2), 2 * jnp.ones(2)
    merged = multi_scale(model, variables, [(maps, one), (larger, two)], proposals, HW)
    features = [
        model.apply(variables, x, proposals.boxes * s, method="box_features") for x, s in ((maps, 1), (larger, 2))
    ]
    context = [model.apply(variables, x, HW * s, method="context_features") for x, s in ((maps, 1), (larger, 2))]
    logits, deltas = model.apply(variables, jnp.maximum(*features), jnp.maximum(*context), method="classify")
    np.testing.assert_allclose(merged.probabilities, jax.nn.softmax(logits), atol=1e-5)
    np.testing.assert_allclose(merged.deltas, deltas, atol=1e-5)
    assert np.abs(merged.probabilities - predictions.probabilities).max() > 1e-4
    # The same maps at every scale change nothing.
    same = multi_scale(model, variables, [(maps, one), (maps, one)], proposals, HW)
    np.testing.assert_allclose(same.probabilities, predictions.probabilities, atol=1e-5)


@pytest.mark.extensive
def test_a_region_reads_only_the_two_scales_that_fit_it(detector):
    model, variables, maps, _, proposals, _ = detector
    one = jnp.ones(2)
    broken = tuple(x * jnp.nan for x in maps)
    model = model.clone(context=False)
    kernels = {name: variables["params"][name]["kernel"] for name in ("box_score", "box_deltas")}
    parts = {
        name: {**variables["params"][name], "kernel": kernel[: len(kernel) // 2]} for name, kernel in kernels.items()
    }
    variables = {**variables, "params": {**variables["params"], **parts}}
    # Enlarging makes regions nearer to a side of 1000 pixels, so the largest two scales are read.
    pyramid = [(broken, one / 100), (maps, one), (maps, one)]
    assert np.all(np.isfinite(multi_scale(model, variables, pyramid, proposals, HW, canonical=1000.0).probabilities))
    assert np.any(np.isnan(multi_scale(model, variables, pyramid, proposals, HW, canonical=0.1).probabilities))


@pytest.mark.extensive
def test_an_ensemble_is_a_union_and_a_mean(detector):
    model, _, _, _, proposals, predictions = detector
    union = ensemble_proposals([proposals, proposals])
    assert union.boxes.shape == (2, 16, 4)
    other = predictions._replace(probabilities=predictions.probabilities[..., ::-1], deltas=3 * predictions.deltas)
    mean = ensemble([model, model], [predictions, other])
    np.testing.assert_allclose(mean.probabilities.sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(mean.deltas, 2 * predictions.deltas, rtol=1e-5)


def test_an_ensemble_of_two_box_codings_is_the_mean_in_the_first_one_s():
    anchors = Anchors(((8.0,),))
    weights = np.float32([[10, 10, 5, 5], [1, 2, 3, 4]])
    models = [FasterRCNN(None, 1, anchors, box=BoxSettings(weights=tuple(each))) for each in weights.tolist()]
    rng = np.random.default_rng(0)
    moves = rng.normal(size=(2, 1, 3, 1, 4)).astype(np.float32)  # What each detector means, in sides of the proposals.
    boxes, valid, probabilities = np.zeros((1, 3, 4)), np.ones((1, 3), bool), np.full((1, 3, 2), 0.5)
    given = [Predictions(boxes, valid, probabilities, moves[i] * weights[i]) for i in range(2)]
    np.testing.assert_allclose(ensemble(models, given).deltas, moves.mean(axis=0) * weights[0], rtol=1e-5)


@pytest.mark.slow
def test_an_ensemble_of_two_networks_is_the_mean_of_both_on_the_regions_of_both(detector):
    """Two networks with other variables and other widths, each region by itself, in a loop in NumPy."""
    first, variables, maps, _, proposals, _ = detector
    network = create_model("resnet18", 0, width=6, stage_sizes=(1, 1), stem="cifar")
    second = first.clone(backbone=ResNetC4(network), rpn_channels=6)
    images = np.random.default_rng(1).normal(size=(2, 32, 48, 3)).astype(np.float32)

    @jax.jit
    def run():
        own, own_maps, proposed = drawn(second, jax.random.key(5), images)
        together = ensemble_proposals([proposals, proposed])
        each = [
            first.apply(variables, maps, together, HW, method="predict"),
            second.apply(own, own_maps, together, HW, method="predict"),
        ]
        heads = [
            first.apply(variables, maps, together.boxes, HW, method="head"),
            second.apply(own, own_maps, together.boxes, HW, method="head"),
        ]
        return proposed, ensemble([first, second], each), heads

    proposed, found, heads = jax.device_get(run())
    for i in range(2):
        boxes = [*np.asarray(proposals.boxes[i]), *proposed.boxes[i]]
        np.testing.assert_array_equal(found.boxes[i], boxes)
        np.testing.assert_array_equal(found.valid[i], [*np.asarray(proposals.valid[i]), *proposed.valid[i]])
        for r in range(len(boxes)):
            softmaxes = []
            for logits, _ in heads:
                exponentials = [np.exp(float(x) - float(logits[i, r].max())) for x in logits[i, r]]
                softmaxes.append([x / sum(exponentials) for x in exponentials])
            for k in range(first.num_classes + 1):
                mean = (softmaxes[0][k] + softmaxes[1][k]) / 2
                np.testing.assert_allclose(found.probabilities[i, r, k], mean, rtol=1e-4, atol=1e-6)
            mean = (heads[0][1][i, r] + heads[1][1][i, r]) / 2
            np.testing.assert_allclose(found.deltas[i, r], mean, rtol=1e-4, atol=1e-5)
    # The networks disagree, or their mean would be either of them.
    assert np.abs(heads[0][0] - heads[1][0]).max() > 0.1
