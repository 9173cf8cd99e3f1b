"""Data sets that the real library wrote."""

import io
import pickle

import numpy as np
import PIL.Image
import pytest

from resnet_jax.data.sources import open_photographs
from resnet_jax.errors import UserError

datasets = pytest.importorskip("datasets")


def png(value):
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.full((3, 4, 3), value, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def dataset(values, labels, image="image", label="label"):
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=["cat", "dog"])})
    rows = {image: [{"bytes": png(value), "path": None} for value in values], label: labels}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("columns", [("image", "label"), ("img", "fine_label")])
def test_splits_labels_and_bytes_are_those_that_were_saved(tmp_path, columns):
    saved = datasets.DatasetDict(train=dataset([1, 2, 3], [1, 0, 1], *columns), valid=dataset([4], [0], *columns))
    saved.save_to_disk(str(tmp_path / "saved"))
    opened = open_photographs("huggingface", str(tmp_path / "saved"))
    assert (opened.splits, opened.class_names) == (("train", "validation"), ["cat", "dog"])
    train = opened.open_split("train")
    assert [train[i]["label"] for i in range(3)] == [1, 0, 1] == train.labels().tolist()
    assert [train[np.int64(i)]["image"] for i in range(3)] == [png(value) for value in (1, 2, 3)]
    assert pickle.loads(pickle.dumps(train))[2] == train[2]
    assert train.files() and all(path.is_file() for path in train.files())


def test_a_data_set_without_splits_is_to_train_on(tmp_path):
    dataset([1], [1]).save_to_disk(str(tmp_path / "saved"))
    assert open_photographs("huggingface", str(tmp_path / "saved")).splits == ("train",)


def test_a_split_without_labels_is_left_out_and_said(tmp_path, capsys):
    saved = datasets.DatasetDict(train=dataset([1, 2], [1, 0]), test=dataset([3, 4], [-1, -1]))
    saved.save_to_disk(str(tmp_path / "saved"))
    assert open_photographs("huggingface", str(tmp_path / "saved")).splits == ("train",)
    assert "split test, has no labels and is left out" in capsys.readouterr().err


@pytest.mark.parametrize("missing", [None, -1])
def test_labels_that_are_missing_are_a_user_error(tmp_path, missing):
    dataset([1, 2, 3], [1, missing, 0]).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match=r"1 of the 3 rows of .* have no label; save it again without them"):
        open_photographs("huggingface", str(tmp_path / "saved"))


def test_what_is_no_data_set_for_classification_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="does not exist; give the folder that save_to_disk wrote"):
        open_photographs("huggingface", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="cannot be read as a Hugging Face data set"):
        open_photographs("huggingface", str(tmp_path))
    datasets.Dataset.from_dict({"image": [1], "label": [0]}).save_to_disk(str(tmp_path / "plain"))
    with pytest.raises(UserError, match="no column 'image' and not just one Image in its place, but image, label"):
        open_photographs("huggingface", str(tmp_path / "plain"))
