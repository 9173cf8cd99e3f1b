"""The recipes for detection: valid, and the published numbers."""

import re
from pathlib import Path

import flax.traverse_util
import jax
import numpy as np
import pytest

from resnet_jax import build
from resnet_jax.config import load_config, override
from resnet_jax.errors import UserError
from resnet_jax.tasks.detection import DetectionTask
from resnet_jax.train.finetune import FineTune

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
# Recipe -> photographs to train on, and the published figures.
RECIPES = {
    "voc_c4_paper.py:vgg16-07": (5_011, []),
    "voc_c4_paper.py:vgg16-07+12": (16_551, ["73.2"]),
    "voc_c4_paper.py:vgg16-07++12": (21_503, ["70.4"]),
    "voc_c4_paper.py:resnet50-07": (5_011, []),
    "voc_c4_paper.py:resnet101-07+12": (16_551, ["76.4"]),
    "voc_c4_paper.py:resnet101-07++12": (21_503, ["73.8"]),
    "coco_c4_paper.py:vgg16": (82_783, ["41.5", "21.2"]),
    "coco_c4_paper.py:resnet50": (82_783, []),
    "coco_c4_paper.py:resnet101": (82_783, ["48.4", "27.2", "49.9", "29.9", "51.1", "30.0", "53.8", "32.5"]),
    "coco_fpn.py:resnet50": (118_287, ["37.9", "40.2", "37.0"]),
    "coco_fpn.py:resnet101": (118_287, ["42.0"]),
    "coco_fpn.py:resnet34": (118_287, []),
    "imagenet_det.py:resnet101": (456_567, ["60.5", "58.8", "63.6", "62.1"]),
    "detection_quickstart.py:fpn": (2_000, []),
    "detection_quickstart.py:c4": (2_000, []),
    "bccd.py:fpn": (205, []),
    "bccd.py:c4": (205, []),
    **{f"imagenet_localisation.py:{network}": (544_546, ["33.1"]) for network in ("vgg16", "resnet50", "resnet152")},
    **{
        f"imagenet_localisation.py:resnet101{step}": (544_546, ["13.3", "11.7", "14.4", "10.6", "8.9"])
        for step in ("", "-1", "-2")
    },
    **{f"localisation_quickstart.py:{member}": (2_000, []) for member in ("rpn", "1", "2")},
}
PAPER = [name for name in RECIPES if "c4_paper" in name]


def load(name):
    return load_config(str(CONFIGS / name))


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid(name, num_devices):
    config = load(name)
    if config.batch_size % num_devices:
        pytest.skip("the released recipe has two photographs a step")
    if config.init.name == "weights":
        config = override(config, {"init.path": "weights.pth"})
    build.check(config, num_devices)
    build.make_schedule(config, build.intervals(config, RECIPES[name][0]))


@pytest.mark.parametrize("name", RECIPES)
def test_every_file_tells_its_command_its_hardware_and_the_published_figures(name):
    file = name.partition(":")[0]
    text = compile((CONFIGS / file).read_text(), name, "exec").co_consts[0]
    assert f"Command:   python train.py --config configs/{file}" in text and "Hardware:  " in text
    for figure in RECIPES[name][1]:
        assert re.search(rf"\b{re.escape(figure)}\b", text)
    assert "ublished" in text or "Expected:" in text


def parameters(config, num_classes, norm=True):
    """Of the detector; without those of batch normalisation, which is frozen, unless ``norm``."""
    if config.model.name.startswith("resnet"):
        config = override(config, {"model.scan_blocks": True})  # One block a stage to trace.
    task = DetectionTask(build.make_model(config, num_classes))
    shapes = jax.eval_shape(lambda: task.init(jax.random.key(0), (64, 64, 3)))
    normalised = {place[:-1] for place in flax.traverse_util.flatten_dict(shapes["batch_stats"])}
    places = flax.traverse_util.flatten_dict(shapes["params"])
    return sum(int(np.prod(leaf.shape)) for place, leaf in places.items() if norm or place[:-1] not in normalised)


@pytest.mark.extensive
def test_detectors_have_as_many_parameters_as_are_published():
    # A head predicts a score of each class and of the background, and a box of each class.
    assert parameters(load("voc_c4_paper.py:resnet101-07+12"), 20, norm=False) == 47_343_954
    context = override(load("voc_c4_paper.py:resnet101-07+12"), {"task.context": True})
    assert parameters(context, 20, norm=False) == 47_550_802
    torchvision = override(load("coco_fpn.py"), {"task.background_boxes": True})
    assert parameters(torchvision, 90, norm=False) == 41_755_286


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_s_recipes_hold_the_numbers_of_faster_rcnn(name):
    config, coco = load(name), name.startswith("coco")
    data, task, optimizer = config.data, config.task, config.optimizer
    assert (data.short_sides, data.max_side, data.evaluation_side, data.flip) == ((600,), 1000, 600, 0.5)
    assert (task.kind, task.anchor_style, task.anchor_ratios) == ("c4", "legacy", (0.5, 1.0, 2.0))
    assert task.anchor_sizes == ((64, 128, 256, 512) if coco else (128, 256, 512))
    rpn, box = task.rpn, task.box
    assert (rpn.positive, rpn.negative, rpn.samples, rpn.fraction, rpn.straddle) == (0.7, 0.3, 256, 0.5, 0)
    assert (rpn.nms, rpn.train_post_nms, rpn.test_post_nms, rpn.channels) == (0.7, 2000, 300, 512)
    assert (box.samples, box.fraction, box.positive, box.nms) == (64, 0.25, 0.5, 0.3)
    assert box.negative == ((0.0, 0.5) if coco else (0.1, 0.5))
    assert (box.beta, rpn.beta) == (1, pytest.approx(1 / 9))
    assert task.pooling.op == "pool" and task.pooling.size == (7 if "vgg" in name else 14)
    frozen = FineTune(freeze=("stem", "stage1"), freeze_bn=True)
    assert config.finetune == (FineTune(freeze=("stage1", "stage2")) if "vgg" in name else frozen)
    assert config.model.stride_placement is None
    assert (optimizer.learning_rate, optimizer.momentum, optimizer.weight_decay) == (1e-3, 0.9, 5e-4)
    sets = "coco" if coco else name.partition("-")[2]
    steps = {"07": (50_000, 70_000), "07+12": (30_000, 60_000), "07++12": (40_000, 100_000), "coco": (240_000, 320_000)}
    assert (*config.schedule.boundaries, config.steps) == steps[sets]
    assert config.schedule.factor == 0.1
    assert config.batch_size == (16 if coco else 2)
    metrics = {"07": "voc07", "07+12": "voc07", "07++12": "voc", "coco": "coco"}
    assert task.metric == metrics[sets]


@pytest.mark.parametrize("network", ["vgg16", "resnet101"])
@pytest.mark.extensive
def test_the_four_steps_of_alternating_training_are_faster_rcnn_s(network):
    """Section 3.2 there; which modules are trained, and how long."""
    shared = [f"conv{i}_1" for i in (1, 2, 3, 5)] if network == "vgg16" else ["stem_conv", *_stages(1, 2, 3)]
    head = ["fc6", "fc7"] if network == "vgg16" else _stages(4)
    free = shared[2:]  # Two parts are frozen always.
    expected = {
        "1": {("rpn_head",), *(("rpn_backbone", name) for name in free)},
        "2": {("box_score",), ("box_deltas",), *(("backbone", name) for name in (*free, *head))},
        "3": {("rpn_head",)},
        "4": {("box_score",), ("box_deltas",), *(("backbone", name) for name in head)},
    }
    for step, modules in expected.items():
        config = override(load(f"voc_c4_paper.py:{network}-07-{step}"), {"init.path": "weights.pth"})
        joint = load(f"voc_c4_paper.py:{network}-07")
        build.check(config, 1)
        odd = step in "13"
        assert (config.steps, config.schedule.boundaries) == ((80_000, (60_000,)) if odd else (40_000, (30_000,)))
        assert (config.batch_size, config.task.trains) == ((1, "rpn") if odd else (2, "detector"))
        assert config.init.head == ("new" if step == "1" else "keep")
        assert (config.task.rpn, config.task.box, config.data) == (joint.task.rpn, joint.task.box, joint.data)
        scanned = {"model.scan_blocks": True} if network == "resnet101" else {}
        model = config.finetune.model(build.make_model(override(config, scanned), 20))
        task = config.task.without_data(model)
        places = flax.traverse_util.flatten_dict(task.trained((64, 64, 3)))
        moving = {(place[0], place[2]) if "backbone" in place[0] else place[:1] for place in places if places[place]}
        watched = {(name,) for name in ("rpn_head", "box_score", "box_deltas")} | {
            (backbone, name) for backbone in ("backbone", "rpn_backbone") for name in (*shared, *head)
        }
        assert moving & watched == modules, step


def _stages(*numbers):
    return [f"stage{i}_block1" for i in numbers]


def test_the_fpn_recipe_is_detectron2_s_1x():
    config = load("coco_fpn.py")
    assert (config.batch_size, config.steps, config.schedule.boundaries) == (16, 90_000, (60_000, 80_000))
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (0.02, 1e-4)
    assert config.schedule.warmup_steps == 1_000
    assert config.data.short_sides == (640, 672, 704, 736, 768, 800) and config.data.max_side == 1333
    task = config.task
    assert (task.kind, task.anchor_sizes, task.box.samples) == ("fpn", (32, 64, 128, 256, 512), 512)
    assert (task.pooling.op, task.pooling.size, task.fpn_channels, task.fpn_hidden) == ("align", 7, 256, 1024)
    assert (task.rpn.train_post_nms, task.rpn.test_post_nms, task.box.nms, task.metric) == (1000, 1000, 0.5, "coco")


def test_the_localisation_recipe_holds_the_numbers_of_appendix_c():
    for step in ("", "-1", "-2"):
        config = load(f"imagenet_localisation.py:resnet101{step}")
        data, task = config.data, config.task
        assert config.batch_size == 256 and (task.rpn.samples, task.rpn.fraction) == (8, 0.5)
        assert (task.rpn.test_post_nms, task.regions.size, task.regions.samples) == (200, 224, 1)
        assert (task.trains, task.rcnn) == ("rcnn" if step == "-2" else "rpn", bool(step))
        if step != "-2":
            assert (data.training_crop.shorter_side, data.crop_size, data.evaluation_side) == ((256, 480), 224, 256)
        assert data.name == "imagenet" and data.train == ("CLS-LOC:train_loc",)


def test_published_detectors_are_those_that_the_recipes_make():
    from resnet_jax.detection.named import detectron2_fpn, paper_c4, paper_vgg

    for name, make in (
        ("voc_c4_paper.py:resnet101-07", paper_c4),
        ("voc_c4_paper.py:vgg16-07", paper_vgg),
        ("coco_fpn.py", detectron2_fpn),
    ):
        config = load(name)
        found = config.finetune.model(build.make_model(config, 20))
        assert found == make(found.backbone.network, 20)


@pytest.mark.parametrize("name", ["bccd.py:c4", "localisation_quickstart.py:2"])
def test_groups_of_batch_normalisation_are_refused_where_they_would_be_of_regions(name):
    config = override(load(name), {"model.bn_group_size": 4, "init.name": "weights", "init.path": "x.pth"})
    with pytest.raises(UserError, match="would divide the regions of each photograph, objects from background"):
        build.check(config, 1)
    build.check(override(config, {"finetune.freeze_bn": True}), 1)


@pytest.mark.parametrize("name", ["bccd.py:fpn", "localisation_quickstart.py:1"])
def test_groups_of_batch_normalisation_are_of_photographs_where_no_regions_are_normalised(name):
    build.check(override(load(name), {"model.bn_group_size": 4}), 1)
