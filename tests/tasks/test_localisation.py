"""The localisation task on drawn shapes: what it learns from a batch, what it refuses, and its keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import build
from resnet_jax.config import load_config, override
from resnet_jax.data.normalization import Normalization
from resnet_jax.errors import UserError
from resnet_jax.experiment.initial import read_start
from resnet_jax.tasks.localisation import Localisation, LocalisationTask, _label

NORMALIZATION = Normalization(np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32))
TINY = {"model.width": 4, "model.stage_sizes": (1, 1), "task.rpn.channels": 8}


def config_of(member="rpn", **changes):
    config = override(load_config(f"configs/localisation_quickstart.py:{member}"), TINY | changes)
    return override(config, {"init.path": "weights.pth"}) if config.init.name == "weights" else config


def test_a_photograph_s_class_is_its_first_object_s_and_others_do_not_count():
    task = LocalisationTask(None, NORMALIZATION)
    batch = {
        "image": np.full((3, 4, 4, 3), 255, np.uint8),
        "image_hw": np.array([[4, 4], [4, 2], [4, 4]], np.int32),
        "boxes": np.zeros((3, 3, 4), np.float32),
        "labels": np.array([[2, 2, 1], [1, 1, 0], [3, 0, 0]], np.int32),
        "valid": np.array([[True, True, True], [True, True, False], [False, False, False]]),
        "crowd": np.array([[False, False, False], [False, True, False], [False, False, False]]),
    }
    found = task.prepare(jax.random.key(0), jax.tree.map(jnp.asarray, batch))
    # The last one's object is not in the crop, and its class known all the same.
    assert found["label"].tolist() == [2, 1, 3]
    assert found["valid"].tolist() == [[True, True, False], [True, False, False], [False] * 3]
    assert (found["image"][0] == 2).all() and (found["image"][1, :, 2:] == 0).all()


def test_frozen_layers_and_an_rcnn_without_weights_are_refused(one_device):
    for changes in (
        {"finetune.freeze": ("stem",)},
        {"finetune.freeze_bn": True},
        {"task.rcnn": True, "task.trains": "rcnn"},
    ):
        config = config_of(**changes)
        with pytest.raises(UserError, match=r"would stay random; set --config\.init\.name=weights"):
            read_start(config, build.make_model(config, 3), ["a", "b", "c"], (96, 96, 3), one_device)


def test_what_a_localiser_cannot_have_is_refused(one_device):
    refused = {
        "trains is 'rcnn', but rcnn is False": {"task.trains": "rcnn"},
        "regions.samples 9 is above the proposals": {"task.rcnn": True, "task.regions.samples": 9},
        "model.drop_path is set, but .* drops nothing": {"model.drop_path": 0.1},
        "rpn.train_pre_nms is set, but .* in tests; set config.task.rpn.test_pre_nms": {"task.rpn.train_pre_nms": 9},
        "names 'stage3', which the network does not have": {"finetune.freeze": ("stage3",)},
        "this task needs 'detection'": {"data.kind": "resident", "data.name": "digits"},
        "bn_recompute_batches is set": {"finetune.freeze_bn": True, "bn_recompute_batches": 2},
    }
    for message, changes in refused.items():
        with pytest.raises(UserError, match=message):
            build.check(config_of(**changes), 1)
    config = config_of(**{"transforms.flip.probability": 0.5})
    with pytest.raises(UserError, match="transforms are for classification"):
        config.task.make(None, None, NORMALIZATION, config.transforms, one_device, 8)
    config = config_of(**{"data.keep_empty": True})
    with pytest.raises(UserError, match="keep_empty is set, but a photograph without objects has no class to localise"):
        config.task.make(None, config.data.load(), NORMALIZATION, config.transforms, one_device, 8)
    for config in (config_of(), config_of("2")):
        with pytest.raises(UserError, match="no protocol 'ten_crop'; use single, dense, multi_scale"):
            config.task._evaluator([], [], config.data.load(), "validation", one_device, 8, "ten_crop")
    with pytest.raises(UserError, match=r"data\.training_crop is not set"):
        config.task._evaluator([], [], config.data.load(), "validation", one_device, 8, "single")
    with pytest.raises(UserError, match="cannot be a localiser's weights"):
        config.task.load_torch("resnet18", "weights.pth", None, {})


def test_what_is_trained_is_the_stage_s_own_part():
    whole = {}
    for stage in ("rpn", "rcnn"):
        model = build.make_model(config_of("1"), 3)
        task = LocalisationTask(model, trains=stage)
        mask = task.trained((32, 32, 3))
        for module, tree in mask.items():
            moves = set(jax.tree.leaves(tree))
            assert len(moves) == 1
            whole.setdefault(module, {})[stage] = moves.pop()
    own = {"rpn": ("rpn_backbone", "rpn_head"), "rcnn": ("backbone", "box_score", "box_deltas")}
    assert whole == {module: {s: s == stage for s in own} for stage, modules in own.items() for module in modules}
    assert LocalisationTask(build.make_model(config_of(), 3)).trained((32, 32, 3)) is None
    assert not Localisation().rcnn


def test_a_class_is_named_by_any_of_its_words():
    names = ["tench, Tinca tinca", "crane", "goldfish, Carassius auratus", "crane"]
    assert _label("tench", names) == 0 and _label("Carassius auratus", names) == 2
    assert _label("goldfish, Carassius auratus", names) == 2
    for shown, message in (("crane", "of 2 of the 4 classes"), ("fish", "of none of the 4 classes"), (None, "shown")):
        with pytest.raises(UserError, match=message):
            _label(shown, names)
