import json

import pytest

from resnet_jax.data.sources import open_photographs
from resnet_jax.errors import UserError


def write(root, kind, split, rows):
    text = "\n".join(
        [",".join(("path", "other", "label")), *(f"{path},x,{label}" for path, label in rows)]
        if kind == "csv"
        else [json.dumps({"path": path, "label": label}) for path, label in rows]
    )
    (root / f"{split}.{kind}").write_text(text + "\n")
    for path, _ in rows:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())


def records(source):
    return [source[i] for i in range(len(source))]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_photographs_are_those_of_the_tables_in_their_order(tmp_path, kind):
    write(tmp_path, kind, "train", [("x/1.jpg", "dog"), ("2.png", "cat"), ("3.jpg", "dog")])
    write(tmp_path, kind, "val", [("4.jpg", "dog")])
    opened = open_photographs(kind, str(tmp_path))
    assert (opened.splits, opened.class_names) == (("train", "validation"), ["cat", "dog"])
    assert records(opened.open_split("train")) == [
        {"image": name.encode(), "label": label, "name": name}
        for name, label in [("x/1.jpg", 1), ("2.png", 0), ("3.jpg", 1)]
    ]
    assert [record["label"] for record in records(opened.open_split("validation"))] == [1]
    alone = open_photographs(kind, str(tmp_path / f"train.{kind}"))
    assert alone.splits == ("train",)
    assert records(alone.open_split("train")) == records(opened.open_split("train"))


def test_labels_that_are_numbers_are_sorted_as_numbers(tmp_path):
    write(tmp_path, "jsonl", "train", [("a.jpg", 10), ("b.jpg", 9)])
    assert open_photographs("jsonl", str(tmp_path)).class_names == ["9", "10"]
    write(tmp_path, "jsonl", "train", [("a.jpg", "2"), ("b.jpg", "01"), ("c.jpg", "1")])
    assert open_photographs("jsonl", str(tmp_path)).class_names == ["01", "1", "2"]


def test_spaces_around_values_do_not_count(tmp_path):
    (tmp_path / "train.csv").write_text("path, label\na.jpg, cat \n b.jpg,cat\n")
    opened = open_photographs("csv", str(tmp_path))
    (tmp_path / "a.jpg").write_bytes(b"a")
    assert opened.class_names == ["cat"] and opened.open_split("train")[0]["name"] == "a.jpg"


def test_a_file_is_read_as_the_kind_that_the_config_names(tmp_path):
    (tmp_path / "list.json").write_text('{"path": "a.jpg", "label": "cat"}\n')
    assert open_photographs("jsonl", str(tmp_path / "list.json")).class_names == ["cat"]


@pytest.mark.parametrize("header", ["a.jpg,cat", "path;label", "path\tlabel"])
def test_a_table_without_its_columns_is_a_user_error_that_shows_the_first_line(tmp_path, header):
    (tmp_path / "train.csv").write_text(f"{header}\nb.jpg,dog\n")
    assert "must name the columns path and label, separated by a comma; it is " + repr(header) in error_of(tmp_path)


def error_of(tmp_path, kind="csv"):
    with pytest.raises(UserError) as caught:
        open_photographs(kind, str(tmp_path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_faults_of_tables_are_user_errors_that_name_the_line(tmp_path):
    assert error_of(tmp_path).startswith(f"there is no file {tmp_path / 'train.csv'};")
    write(tmp_path, "csv", "train", [])
    assert "lists no photographs" in error_of(tmp_path)
    write(tmp_path, "csv", "train", [("a.jpg", "cat"), ("b.jpg", "")])
    assert error_of(tmp_path).startswith(f"line 3 of {tmp_path / 'train.csv'} has no path or no label")
    write(tmp_path, "csv", "train", [("a.jpg", "cat")])
    write(tmp_path, "csv", "val", [("a.jpg", "dog")])
    assert "has the label 'dog', which" in error_of(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"path": "a.jpg", "label": 1}\n{"path": \n')
    assert "cannot be read as a table (line 2: " in error_of(tmp_path, "jsonl")
