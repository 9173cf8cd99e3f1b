"""Localisers trained from a backbone's weights in two steps, resumed, scored and used; by configs and workdirs."""

import csv

import flax.traverse_util
import jax
import numpy as np
import PIL.Image
import pytest

from resnet_jax.config import Config, Model, load_config, override
from resnet_jax.data.sources.detection.shapes import CLASSES, ShapesSource
from resnet_jax.errors import UserError
from resnet_jax.experiment.networks import load_run
from resnet_jax.experiment.scoring import score
from resnet_jax.experiment.training import train
from resnet_jax.tasks.task import Member
from resnet_jax.train.writers import read_metrics

BACKBONE = Model(name="resnet18", width=4, stage_sizes=(1, 1))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """ImageNet's layout with 12 and 5 drawn photographs, in folders of their classes; two have no annotation."""
    root, source = tmp_path_factory.mktemp("imagenet"), ShapesSource("train", one_class=True)
    for index in range(19):
        found = source.objects(index)
        name = CLASSES[found.labels[0]]
        place = f"train/{name}/{index:02}" if index < 14 else f"val/{index:02}"
        for folder, suffix in (("Data", "JPEG"), ("Annotations", "xml")):
            path = root / folder / "CLS-LOC" / f"{place}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if suffix == "JPEG":
                PIL.Image.fromarray(source[index]["image"]).save(path, "JPEG", quality=95)
            elif index not in (12, 13):
                objects = "".join(
                    f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2 - 1}</xmax>"
                    f"<ymax>{y2 - 1}</ymax></bndbox></object>"
                    for x1, y1, x2, y2 in found.boxes
                )
                path.write_text(f"<annotation>{objects}</annotation>")
    return root


def tiny(member, root, **changes):
    """A step of the quickstart on the photographs of a folder, with normalisation and the stem frozen.

    The learning rate is constant: a cosine depends on config.steps, by which a run is cut short.
    """
    common = {
        "data_dir": str(root), "data.name": "imagenet", "data.train": ("CLS-LOC:train_loc",),
        "data.validation": ("CLS-LOC:val",), "data.short_sides": (64,), "data.max_side": 64, "model.width": 4,
        "model.stage_sizes": (1, 1), "batch_size": 8, "eval_batch_size": 4, "steps": 4, "log_every": 2,
        "eval_every": 2, "checkpoint_every": 2, "schedule.name": "constant", "schedule.warmup_steps": 0,
        "task.rpn.channels": 8, "task.rpn.test_pre_nms": 32, "task.regions.size": 16, "finetune.freeze_bn": True,
        "finetune.freeze": ("stem",), "task.test_scales": (48, 64), "init.name": "weights",
    }  # fmt: skip
    if member != "2":
        # As large as the backbone's images, whose mean image fits crops and not photographs.
        common |= {"data.crop_size": 32, "data.training_crop.shorter_side": (40, 56)}
    return override(load_config(f"configs/localisation_quickstart.py:{member}"), common | changes)


def parts_of(variables):
    """Parameters by module, and what of them is a kernel or bias that may move: not of the stem, nor normalisation."""
    found = {}
    for place, leaf in flax.traverse_util.flatten_dict(jax.device_get(variables)).items():
        found.setdefault(place[0], {})[place] = leaf
    return found


def free(place):
    return "network" not in place or (place[-1] == "kernel" and place[2].startswith("stage"))


@pytest.mark.slow
def test_a_localiser_is_trained_in_two_steps_resumed_scored_and_used(imagenet, tmp_path, save_run, capsys):
    weights = save_run(tmp_path / "0", Config(model=BACKBONE), {5: None})[5]
    configs = {step: tiny(step, imagenet, **{"init.path": str(tmp_path / str(int(step) - 1))}) for step in "12"}
    states = {}
    for step, config in configs.items():
        states[step] = train(config, tmp_path / step)
        # Cut short after two steps, and gone on with: the same to the bit.
        train(override(config, {"steps": 2}), tmp_path / f"{step}-cut")
        again = train(config, tmp_path / f"{step}-cut", allow_config_change=True)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(states[step]), jax.device_get(again))
    assert "12 photographs" in capsys.readouterr().err

    network = {"network": {name: leaves for name, leaves in weights["params"].items() if name != "head"}}
    before = parts_of({"backbone": network, "rpn_backbone": network})
    for step, own in (("1", {"rpn_head", "rpn_backbone"}), ("2", {"backbone", "box_score", "box_deltas"})):
        after = parts_of(states[step].params)
        assert after.keys() == {"rpn_head", "rpn_backbone", "backbone", "box_score", "box_deltas"}
        for module, leaves in after.items():
            if module not in before:  # New.
                continue
            changed = {place for place, leaf in leaves.items() if not np.array_equal(leaf, before[module][place])}
            assert changed == ({place for place in leaves if free(place)} if module in own else set()), (step, module)
        assert not any("stage2_" in name for place in after["rpn_backbone"] for name in place)  # The last stage.
        before = after

    records = {step: read_metrics(tmp_path / step / "metrics.jsonl")[-1] for step in "12"}
    assert {"train_objectness", "train_rpn_box", "validation_given_class_error"} <= records["1"].keys()
    assert {"train_classifier", "train_box", "validation_given_class_error"} <= records["2"].keys()
    for step, protocol in (("1", "single"), ("2", "dense")):
        result = score(configs[step], [tmp_path / step], protocol=protocol).record
        assert result["num_examples"] == 5
        assert result["given_class_error"] == pytest.approx(records[step]["validation_given_class_error"])
    with pytest.raises(UserError, match=r"training_crop is not set"):
        score(configs["2"], [tmp_path / "2"])

    # Under predicted classes: of the last photograph they are all wrong.
    labels = [CLASSES[ShapesSource("train").objects(index).labels[0]] for index in range(14, 19)]
    lines = [f"{i},val/{i}.jpg,{name},{name}" for i, name in zip(range(14, 19), labels, strict=True)]
    other = next(name for name in CLASSES if name != labels[-1])
    table = tmp_path / "classes.csv"
    table.write_text("\n".join(["index,name,label,class1", *lines[:-1], f"18,val/18.jpg,{labels[-1]},{other}"]))
    guessed = override(configs["1"], {"task.classes": str(table)})
    result = score(guessed, [tmp_path / "1", tmp_path / "1"], protocol="multi_scale")
    given, top5 = (result.record[name] for name in ("given_class_error", "top5_localisation_error"))
    assert top5 == result.record["top1_localisation_error"] == given + (0 if result.scores.wrong[4] else 20)

    guessed.task.write_scores(tmp_path / "boxes.csv", result.scores, result.dataset, "validation")
    with (tmp_path / "boxes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == labels and [int(row["wrong"]) for row in rows] == [
        int(wrong) for wrong in result.scores.wrong.values()
    ]

    # Used on a photograph by itself it finds what was scored.
    run = load_run(tmp_path / "2")
    dense = score(configs["2"], [tmp_path / "2"], protocol="dense").scores.answers
    photograph = imagenet / "Data/CLS-LOC/val/16.JPEG"
    task = override(configs["2"], {"task.shown": labels[2]}).task
    member = Member(run.model, run.normalize, run.variables)
    (described,) = task.predict(member, run.class_names, [photograph], configs["2"].data.look(run.image_shape))
    probability, name, x1, *_ = described.lines[0].replace("(", "").replace(",", "").replace("%", "").split()
    assert name == labels[2] and float(x1) == pytest.approx(dense.boxes[2, 0, 0], abs=2)
    assert float(probability) == pytest.approx(100 / (1 + np.exp(-dense.scores[2, 0])), abs=0.5)
    described.draw(tmp_path / "pictures" / "16.png")
    with PIL.Image.open(tmp_path / "pictures" / "16.png") as drawn:
        assert drawn.size == (128, 128)


@pytest.mark.slow
def test_a_tiny_localiser_learns_where_shapes_are(tmp_path):
    changes = {"steps": 200, "eval_every": 200, "checkpoint_every": 200}
    config = override(load_config("configs/localisation_quickstart.py"), changes)
    train(config, tmp_path / "run")
    (record,) = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "validation_given_class_error" in r]
    assert record["train_loss"] < 0.4
    assert record["validation_given_class_error"] < 45  # Before it learns it is above 70.
    assert score(config, [tmp_path / "run"], protocol="dense").record["given_class_error"] < 25
