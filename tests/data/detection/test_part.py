"""A data set of detection out of its settings: a folder in VOC's layout, and the photographs of blood cells."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from resnet_jax.data import DetectionData
from resnet_jax.errors import UserError
from tests.data.detection.test_dataset import SETTINGS, assert_same, training


def test_a_folder_is_loaded_and_its_objects_cached(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for one in ("a", "b"):
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rng.integers(256, size=(20, 30, 3), dtype=np.uint8)).save(
            tmp_path / f"JPEGImages/{one}.jpg"
        )
        box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>10</xmax><ymax>12</ymax></bndbox>"
        (tmp_path / f"Annotations/{one}.xml").write_text(f"<a><object><name>cell</name>{box}</object></a>")
        (tmp_path / f"ImageSets/Main/{one}.txt").write_text(one)
    settings = SETTINGS.model_copy(update={"train": ("a", "b"), "validation": ("b",)})
    first = settings.load(str(tmp_path))
    assert first.class_names == ["cell"] and first.num_train == 2
    batches = training(first, 2, 0, 3)
    monkeypatch.setattr("resnet_jax.data.detection.dataset.photograph_sizes", None)  # Nothing is read again.
    assert_same(training(settings.load(str(tmp_path)), 2, 0, 3), batches)
    swapped = settings.model_copy(update={"train": ("b", "a")})
    with pytest.raises(TypeError):  # The same files in another order are another list.
        swapped.load(str(tmp_path)).count("train")
    (tmp_path / "Annotations/a.xml").write_text("<a>")
    with pytest.raises(UserError, match=r"a.xml is not VOC's XML"):
        settings.load(str(tmp_path)).count("train")


def test_of_the_blood_cells_the_two_boxes_without_area_are_left_out(capsys):
    folder = Path(__file__).resolve().parents[4] / "shared" / "detection" / "bccd"
    if not folder.is_dir():
        pytest.skip(f"needs the photographs of blood cells in {folder}")
    settings = DetectionData(train=("train", "val"), validation=("val",), test=(), short_sides=(240,), max_side=320)
    data = settings.load(str(folder))
    assert data.num_train == 292 and data.training_canvases == [(256, 320)]
    assert "292 photographs" in (line := capsys.readouterr().err) and "3941 boxes, 2 without area left out" in line
    (batch,) = training(data, 4, 0, 1)
    assert (batch["image_hw"] == (240, 320)).all() and batch["valid"].any(axis=1).all()
