"""A detector trained from a backbone's weights, resumed, scored, and used on photographs; by configs and workdirs."""

import csv
import dataclasses

import flax.traverse_util
import jax
import numpy as np
import PIL.Image
import pytest

from resnet_jax import build
from resnet_jax.config import Config, Model, load_config, override
from resnet_jax.errors import UserError
from resnet_jax.experiment.networks import load_run
from resnet_jax.experiment.scoring import score
from resnet_jax.experiment.training import train
from resnet_jax.interop.torch_weights import save_torch
from resnet_jax.tasks.task import Member
from resnet_jax.train.writers import read_metrics

BACKBONE = Model(name="resnet18", width=4, stage_sizes=(1, 1))


def tiny(kind, folder, **changes):
    """A recipe on the drawn photographs of a folder, with normalisation and the stem frozen."""
    common = {
        "data_dir": str(folder), "data.name": "voc", "data.train": ("train",), "data.validation": ("val",),
        "data.short_sides": (48,), "data.max_side": 64, "data.canvas_stride": 16, "model.width": 4,
        "model.stage_sizes": (1, 1), "batch_size": 8, "eval_batch_size": 8, "steps": 4, "log_every": 2,
        "eval_every": 2, "checkpoint_every": 2, "schedule.warmup_steps": 1, "task.rpn.train_pre_nms": 32,
        "task.rpn.train_post_nms": 16, "task.rpn.test_pre_nms": 32, "task.rpn.test_post_nms": 16,
        "task.box.samples": 8, "task.box.candidates": 30, "task.box.min_score": 0.0, "task.box.detections": 6,
        "finetune.freeze_bn": True, "finetune.freeze": ("stem",),
    }  # fmt: skip
    return override(load_config(f"configs/detection_quickstart.py:{kind}"), common | changes)


@pytest.fixture(scope="module")
def config(shapes_folder):
    return tiny("fpn", shapes_folder, **{"task.anchor_sizes": (12.0, 20.0, 28.0)})


def network_of(variables):
    found = {name: variables[name]["backbone"]["network"] for name in ("params", "batch_stats")}
    return flax.traverse_util.flatten_dict(jax.device_get(found))


@pytest.mark.slow
def test_a_detector_starts_from_a_backbone_resumes_without_it_and_is_scored_and_used(
    config, tmp_path, random_variables, shapes_folder, save_run, capsys
):
    # A classification run of the backbone, and the same weights as a file of PyTorch's.
    classifier = Config(model=BACKBONE)
    weights = save_run(tmp_path / "classifier", classifier, {5: None})[5]
    expected = {place: leaf for place, leaf in flax.traverse_util.flatten_dict(weights).items() if "head" not in place}
    save_torch(weights, tmp_path / "weights.safetensors", model=build.make_model(classifier, 10))

    for source in ("weights.safetensors", "classifier"):
        workdir = tmp_path / f"from-{source}"
        own = override(config, {"init.name": "weights", "init.path": str(tmp_path / source)})
        train(override(own, {"steps": 2}), workdir)
        (tmp_path / source).rename(tmp_path / f"{source}.gone")
        train(own, workdir, allow_config_change=True)
        found = network_of(load_run(workdir).variables)
        assert found.keys() == expected.keys()
        same = {place for place, leaf in found.items() if np.array_equal(leaf, expected[place])}
        # The stem and batch normalisation are as they were given; the other kernels have moved.
        kernels = {place for place in found if place[-1] == "kernel" and place[1].startswith("stage")}
        assert same == found.keys() - kernels and kernels
    with pytest.raises(UserError, match=r"there is no such file"):
        train(override(own, {"init.path": str(tmp_path / "weights.safetensors")}), tmp_path / "new")

    records = read_metrics(workdir / "metrics.jsonl")
    assert [record["step"] for record in records] == [2, 4] and "validation_mAP" in records[-1]
    assert (workdir / "average_precision.png").exists() and not (workdir / "errors.png").exists()

    result = score(own, [workdir])
    assert result.record["num_examples"] == 4 and result.record["mAP"] == pytest.approx(records[-1]["validation_mAP"])
    assert score(own, [workdir], protocol="refine").record["protocol"] == "refine"
    own.task.write_scores(tmp_path / "classes.csv", result.scores, result.dataset, "validation")
    with (tmp_path / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [*result.dataset.class_names, "mean"]
    assert float(rows[-1]["average_precision"]) == pytest.approx(result.record["mAP"] / 100, abs=1e-5)
    assert (tmp_path / "classes.png").exists()

    network = load_run(workdir)
    member = Member(network.model, network.normalize, network.variables)
    photographs = sorted((shapes_folder / "JPEGImages").glob("*.jpg"))[-2:]
    (tmp_path / "broken.jpg").write_bytes(b"no photograph")
    size = own.data.look(network.image_shape)
    described = list(own.task.predict(member, network.class_names, [tmp_path / "broken.jpg", *photographs], size))
    assert [one.path for one in described] == photographs and "broken.jpg cannot be decoded" in capsys.readouterr().err
    assert all(one.lines and any(name in one.lines[0] for name in network.class_names) for one in described)
    described[0].draw(tmp_path / "pictures" / "0.png")
    drawn = np.asarray(PIL.Image.open(tmp_path / "pictures" / "0.png"))
    assert drawn.shape == np.asarray(PIL.Image.open(photographs[0])).shape
    # What is found in a photograph by itself is what was scored.
    found = result.scores.found.detections[-1]
    assert len(described[-1].lines) == len(found.scores)
    scores = [float(line.split("%")[0]) for line in described[-1].lines]
    np.testing.assert_allclose(scores, 100 * np.sort(found.scores)[::-1], atol=0.2)


# What each step of alternating training changes of: the shared part of the detector's backbone, its head, its two last
# layers, the proposal network, and the backbone that is the proposal network's alone.
STEPS = {
    "1": ({"task.trains": "rpn", "task.shared": False}, {"rpn_head", "rpn_backbone"}),
    "2": ({"task.trains": "detector", "task.shared": False, "init.head": "keep"}, {"shared", "conv5", "box"}),
    "3": ({"task.trains": "rpn", "finetune.freeze": ("stem", "stage1"), "init.head": "keep"}, {"rpn_head"}),
    "4": ({"task.trains": "detector", "finetune.freeze": ("stem", "stage1"), "init.head": "keep"}, {"conv5", "box"}),
}


def parts_of(params):
    """The kernels and biases of convolutions and dense layers by the part that they belong to."""
    found = {}
    for place, leaf in flax.traverse_util.flatten_dict(jax.device_get(params)).items():
        part = "box" if place[0].startswith("box_") else place[0]
        if part == "backbone":
            part = "conv5" if place[2].startswith("stage2_") else "shared"
        found.setdefault(part, {})[place] = leaf
    return found


@pytest.mark.slow
def test_alternating_training_changes_in_each_step_what_it_says(shapes_folder, tmp_path, save_run):
    weights = save_run(tmp_path / "0", Config(model=BACKBONE), {5: None})[5]
    c4 = {"task.anchor_sizes": (12.0, 24.0), "task.pooling.size": 4, "finetune.freeze": (), "steps": 2}
    weighty = {"init.name": "weights", "optimizer.weight_decay": 0.1, "schedule.name": "constant"}
    base = tiny("c4", shapes_folder, **c4, **weighty, ema_decay=0.9)
    states, records = {}, {}
    for step, (changes, _) in STEPS.items():
        own = override(base, {"init.path": str(tmp_path / str(int(step) - 1))} | changes)
        states[step] = train(own, tmp_path / step)
        records[step] = read_metrics(tmp_path / step / "metrics.jsonl")[-1]

    network = {name: leaves for name, leaves in weights["params"].items() if name != "head"}
    before = parts_of({"backbone": {"network": network}})
    before["rpn_backbone"] = {("rpn_backbone", *place[1:]): leaf for place, leaf in before["shared"].items()}
    for step, (_, expected) in STEPS.items():
        after, averages = (parts_of(params) for params in (states[step].params, states[step].ema["params"]))
        assert ("rpn_backbone" in after) == (step in "12")
        for part, leaves in after.items():
            if part not in before or (step, part) == ("3", "rpn_head"):  # New in this step.
                continue
            assert leaves.keys() == before[part].keys()
            changed = {place for place in leaves if not np.array_equal(leaves[place], before[part][place])}
            # Scales and biases of batch normalisation, the network's only ones, are frozen in all steps.
            free = {place for place in leaves if place[-1] == "kernel" or "network" not in place}
            assert changed == (free if part in expected else set()), (step, part)
            # So is the moving average, from which the next step starts.
            moved = {place for place in leaves if not np.array_equal(averages[part][place], before[part][place])}
            assert moved == changed, (step, part)
        statistics = flax.traverse_util.flatten_dict(jax.device_get(states[step].batch_stats))
        given = flax.traverse_util.flatten_dict(weights["batch_stats"])
        assert {place[2:] for place in statistics} == given.keys()
        for place, leaf in statistics.items():
            np.testing.assert_array_equal(leaf, given[place[2:]])
        before = averages
    # The figure of a proposal network is the recall of its proposals, and that of a detector its precision.
    for step, record in records.items():
        losses = {name for name in ("objectness", "rpn_box", "classifier", "box") if f"train_{name}" in record}
        figures = {name for name in ("validation_recall", "validation_mAP") if name in record}
        if step in "13":
            assert losses == {"objectness", "rpn_box"} and figures == {"validation_recall"}
        else:
            assert losses == {"classifier", "box"} and figures == {"validation_mAP"}
    assert score(own, [tmp_path / "4"]).record["num_examples"] == 4
    proposals = score(own, [tmp_path / "4"], protocol="proposals")
    # The proposal network of step 3, on a backbone that is the same.
    assert proposals.record["recall"] == pytest.approx(records["3"]["validation_recall"])
    with pytest.raises(UserError, match="use --protocol=proposals"):
        score(override(own, STEPS["3"][0] | {"init.path": str(tmp_path / "2")}), [tmp_path / "3"])


@pytest.mark.slow
def test_a_whole_detector_of_torchvision_s_keys_is_scored(config, tmp_path):
    torch = pytest.importorskip("torch")
    fpn, hidden, anchors, classes = 32, 64, 3, 3
    shapes = {"conv1": (4, 3, 7, 7), "layer1.0.conv1": (4, 4, 3, 3), "layer1.0.conv2": (4, 4, 3, 3)}
    shapes |= {"layer2.0.conv1": (8, 4, 3, 3), "layer2.0.conv2": (8, 8, 3, 3), "layer2.0.downsample.0": (8, 4, 1, 1)}
    shapes = {f"backbone.body.{name}.weight": shape for name, shape in shapes.items()}
    norms = {"bn1": 4, "layer1.0.bn1": 4, "layer1.0.bn2": 4, "layer2.0.bn1": 8, "layer2.0.bn2": 8}
    for name, width in (norms | {"layer2.0.downsample.1": 8}).items():
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"backbone.body.{name}.{leaf}"] = (width,)
    biased = {f"backbone.fpn.inner_blocks.{i}.0": (fpn, width, 1, 1) for i, width in enumerate((4, 8))}
    biased |= {f"backbone.fpn.layer_blocks.{i}.0": (fpn, fpn, 3, 3) for i in range(2)}
    biased |= {"rpn.head.conv.0.0": (fpn, fpn, 3, 3), "rpn.head.cls_logits": (anchors, fpn, 1, 1)}
    biased |= {"rpn.head.bbox_pred": (4 * anchors, fpn, 1, 1), "roi_heads.box_head.fc6": (hidden, fpn * 49)}
    biased |= {"roi_heads.box_head.fc7": (hidden, hidden)}
    biased |= {"roi_heads.box_predictor.cls_score": (classes + 1, hidden)}
    biased |= {"roi_heads.box_predictor.bbox_pred": (4 * (classes + 1), hidden)}
    for name, shape in biased.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.1 * torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    torch.save(state, tmp_path / "detector.pth")
    own = override(config, {"task.background_boxes": True, "task.anchor_style": "rounded", "task.anchors_fitted": True})
    found = score(own, torch_weights=[str(tmp_path / "detector.pth")])
    assert found.record["num_examples"] == 4 and 0 <= found.record["mAP"] <= 100
    params = found.networks[0].variables["params"]
    expected = state["roi_heads.box_predictor.cls_score.weight"].numpy().T
    np.testing.assert_array_equal(params["box_score"]["kernel"], expected)
    kernel = state["backbone.fpn.inner_blocks.1.0.weight"].numpy()
    np.testing.assert_array_equal(params["backbone"]["inner_1"]["kernel"], kernel.transpose(2, 3, 1, 0))


def test_networks_of_a_task_keep_their_config(config):
    """A config of detection survives being written and read, and an unset task is classification."""
    from resnet_jax.config import to_json

    assert Config.model_validate_json(to_json(config)) == config
    assert Config().task.name == "classification" and dataclasses.is_dataclass(build.make_model(Config(), 10))
