"""The whole detector against torchvision's, layer by layer, with the same weights."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.detection.boxes import iou
from resnet_jax.detection.named import torchvision_fpn
from resnet_jax.detection.roi import roi_align
from resnet_jax.detection.second_stage import detect
from resnet_jax.detection.targets import Targets
from resnet_jax.detection.training import training_losses
from resnet_jax.errors import UserError
from resnet_jax.interop.torch_detection import load_torch_detection
from resnet_jax.models import create_model

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
HW = np.float32([[128, 160]])

pytestmark = pytest.mark.extensive  # A whole detector on a ResNet-50.


def relative(actual, expected):
    return float(np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def detector(golden):
    """The model, its variables and the image. Stages are scanned, which compiles in less time."""
    model = torchvision_fpn(create_model("resnet50", 0, stride_placement="v1.5", scan_blocks=True))
    # Every anchor and proposal counts, as in the run that gave these numbers.
    rpn = model.rpn._replace(samples=20_000)
    box = model.box._replace(min_score=0.02, candidates=5000, samples=1500, fraction=1.0)
    model = model.clone(rpn=rpn, box=box)
    image = (golden["image"].transpose(1, 2, 0)[None] - MEAN) / STD
    return model, load_torch_detection(model, golden.state_dict), image


@pytest.fixture(scope="module")
def outputs(golden, detector):
    model, variables, image = detector

    @jax.jit
    def run(variables, image, rois):
        maps = model.apply(variables, image, method="features")
        scores, deltas = model.apply(variables, maps, method="rpn_outputs")
        proposals = model.apply(variables, maps, image.shape[1:3], HW, method="propose")
        logits, box_deltas = model.apply(variables, maps, rois, HW, method="head")
        detections = detect(model.apply(variables, maps, proposals, HW, method="predict"), HW, model.box)
        return {
            "maps": maps,
            "scores": jnp.concatenate(scores, axis=1)[0],
            "deltas": jnp.concatenate(deltas, axis=1)[0],
            "anchors": jnp.concatenate(model.apply(variables, maps, image.shape[1:3], method="anchor_boxes")),
            "proposals": proposals,
            "pooled": model.pooling(maps[:4], model.backbone.strides[:4], rois)[0],
            "logits": logits[0],
            "box_deltas": box_deltas[0].reshape(len(rois[0]), -1),
            "detections": detections,
        }

    return jax.device_get(run(variables, image, golden["rois"][None]))


def test_feature_maps(golden, outputs):
    for level, name in enumerate(["0", "1", "2", "3", "pool"]):
        assert relative(outputs["maps"][level].mean(axis=(0, 1, 2)), golden[f"fpn_{name}_mean"]) < 1e-4
    assert relative(outputs["maps"][3][0].transpose(2, 0, 1), golden["fpn_3"]) < 1e-4


def test_anchors_and_proposals(golden, outputs):
    np.testing.assert_array_equal(outputs["anchors"], golden["anchors"])
    assert relative(outputs["scores"], golden["rpn_objectness"]) < 1e-4
    assert relative(outputs["deltas"], golden["rpn_deltas"]) < 1e-4
    proposals = outputs["proposals"]
    assert proposals.valid.sum() == len(golden["proposals"])
    np.testing.assert_allclose(proposals.boxes[0][proposals.valid[0]], golden["proposals"], atol=1e-2)


def test_pooled_regions_and_their_classes(golden, outputs):
    assert relative(outputs["pooled"].mean(axis=(1, 2)), golden["roi_pooled_mean"]) < 1e-4
    assert relative(outputs["pooled"][:2].transpose(0, 3, 1, 2), golden["roi_pooled_0_1"]) < 1e-4
    assert relative(outputs["logits"], golden["roi_class_logits"]) < 1e-4
    assert relative(outputs["box_deltas"], golden["roi_box_deltas"]) < 1e-4


@pytest.mark.parametrize("form", ["einsum", "gather"])
@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_of_one_map(golden, outputs, aligned, form):
    pooled = roi_align(outputs["maps"][1], golden["rois"][None], 1 / 8, 14, 2, aligned, form)
    expected = golden["roi_align_single_aligned" if aligned else "roi_align_single"]
    assert relative(pooled[0].mean(axis=-1), expected) < 1e-4


def test_detections(golden, outputs):
    found = outputs["detections"]
    assert found.valid.all() and not found.overflow.any()
    np.testing.assert_allclose(found.scores[0], golden["detections_scores"], atol=1e-3)
    np.testing.assert_array_equal(found.labels[0] + 1, golden["detections_labels"])
    assert np.diag(iou(found.boxes[0], golden["detections_boxes"])).min() > 0.99


def test_keys_of_older_versions_and_what_does_not_fit(golden, detector):
    model, variables, _ = detector
    renamed = {}
    for key, value in golden.state_dict.items():
        old = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        renamed[re.sub(r"(fpn\.\w+_blocks\.\d)\.0\.", r"\1.", old)] = value
    assert set(renamed) != set(golden.state_dict)
    jax.tree.map(np.testing.assert_array_equal, load_torch_detection(model, renamed), variables)
    del renamed["rpn.head.conv.bias"]
    with pytest.raises(UserError, match=r"does not fit the detector: rpn.head.conv.0.0.bias is missing; make the"):
        load_torch_detection(model, renamed)


def test_the_four_losses(golden, detector):
    model, variables, image = detector
    targets = Targets(golden["gt_boxes"][None], golden["gt_labels"][None].astype(np.int32) - 1, np.ones((1, 3), bool))
    losses, _ = jax.jit(lambda variables: training_losses(model, variables, image, HW, targets, jax.random.key(0)))(
        variables
    )
    names = {
        "objectness": "loss_objectness",
        "rpn_box": "loss_rpn_box_reg",
        "classifier": "loss_classifier",
        "box": "loss_box_reg",
    }
    for name, theirs in names.items():
        np.testing.assert_allclose(losses[name], golden[theirs], rtol=1e-4, err_msg=name)
