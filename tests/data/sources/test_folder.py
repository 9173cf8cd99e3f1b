import os
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from resnet_jax.data.sources.folder import open_folder, open_photographs
from resnet_jax.errors import UserError


def write(root, *names):
    """Files that hold their own names: a folder of photographs does not look into them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def records(source):
    return [source[i] for i in range(len(source))]


def names(source):
    return [record["name"] for record in records(source)]


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_photographs_are_sorted_by_class_then_path_and_labels_number_the_sorted_classes(tmp_path, validation):
    write(tmp_path, "train/dog/b.tif", "train/dog/a.jpg", "train/cat/z.png", "train/ant/m.webp")
    write(tmp_path, f"{validation}/dog/1.jpg", f"{validation}/cat/2.jpg")
    train = open_folder(tmp_path, "train")
    assert train.class_names == ["ant", "cat", "dog"]
    assert records(train) == [
        {"image": name.encode(), "label": label, "name": name}
        for name, label in [
            ("train/ant/m.webp", 0),
            ("train/cat/z.png", 1),
            ("train/dog/a.jpg", 2),
            ("train/dog/b.tif", 2),
        ]
    ]
    found = open_folder(tmp_path, "validation")
    assert found.class_names == train.class_names
    # The labels are those of train although ant has no folder here.
    assert [(record["name"], record["label"]) for record in records(found)] == [
        (f"{validation}/cat/2.jpg", 1),
        (f"{validation}/dog/1.jpg", 2),
    ]
    assert {type(record["label"]) for record in records(found)} == {int}


def test_nested_files_are_found_and_hidden_and_other_ones_are_not(tmp_path):
    wanted = ["a.JPEG", "b.jpeg", "c.PNG", "d.bmp", "deep/er/e.jpg", "f.WebP", "g.jpg"]
    write(tmp_path, *(f"train/cat/{name}" for name in reversed(wanted)))
    write(tmp_path, "train/cat/._a.jpg", "train/cat/.hidden/x.jpg", "train/.hidden/x.jpg")
    write(tmp_path, "train/cat/notes.txt", "train/cat/Thumbs.db", "train/cat/jpg", "train/stray.jpg")
    source = open_folder(tmp_path, "train")
    assert names(source) == [f"train/cat/{name}" for name in wanted]
    assert source.class_names == ["cat"]


def test_a_class_without_photographs_keeps_its_label_and_is_said(tmp_path, capsys):
    write(tmp_path, "train/cat/a.jpg", "train/bat/notes.txt", "train/dog/a.jpg", "val/dog/b.jpg", "val/cat/notes.txt")
    source = open_folder(tmp_path, "train")
    assert capsys.readouterr().err.startswith(f"warning: bat in {tmp_path / 'train'} hold no photographs")
    open_folder(tmp_path, "validation")
    assert not capsys.readouterr().err
    assert source.class_names == ["bat", "cat", "dog"]
    assert [record["label"] for record in records(source)] == [1, 2]


def test_class_folders_may_be_links(tmp_path):
    write(tmp_path, "elsewhere/a.jpg")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "cat").symlink_to(tmp_path / "elsewhere")
    assert names(open_folder(tmp_path, "train")) == ["train/cat/a.jpg"]


def test_validation_alone_has_its_own_classes(tmp_path):
    write(tmp_path, "val/dog/a.jpg", "val/cat/a.jpg")
    assert open_folder(tmp_path, "validation").class_names == ["cat", "dog"]


def test_class_folders_alone_are_to_train_on(tmp_path):
    write(tmp_path, "dog/a.jpg", "cat/b.jpg")
    opened = open_photographs("folder", str(tmp_path))
    assert (opened.splits, opened.class_names) == (("train",), ["cat", "dog"])
    assert names(opened.open_split("train")) == ["cat/b.jpg", "dog/a.jpg"]
    write(tmp_path, "val/cat/c.jpg")  # Then the other folders are not classes any more.
    assert open_photographs("folder", str(tmp_path)).splits == ("validation",)


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("Training", "Testing"), ("train", "test")),
        (("train", "valid", "test"), ("train", "validation", "test")),
        (("train", "dev"), ("train", "validation")),
        (("test", "VAL"), ("validation", "test")),
    ],
)
def test_splits_are_called_as_people_call_them(tmp_path, folders, splits):
    for folder in folders:
        write(tmp_path, f"{folder}/cat/a.jpg", f"{folder}/dog/b.jpg")
    opened = open_photographs("folder", str(tmp_path))
    assert (opened.splits, opened.class_names) == (splits, ["cat", "dog"])
    for split in splits:
        assert [record["label"] for record in records(opened.open_split(split))] == [0, 1]


def test_a_class_may_be_called_like_a_split(tmp_path):
    write(tmp_path, "bus/a.jpg", "car/b.jpg", "train/c.jpg")
    assert open_photographs("folder", str(tmp_path)).class_names == ["bus", "car", "train"]


def test_photographs_of_a_test_split_without_classes_are_left_alone(tmp_path):
    write(tmp_path, "train/cat/a.jpg", "val/cat/b.jpg", "test/1.jpg")
    assert open_photographs("folder", str(tmp_path)).splits == ("train", "validation")


def test_splits_are_no_classes(tmp_path):
    write(tmp_path, "train/a.jpg", "val/b.jpg")
    with pytest.raises(UserError, match=r"there are no class folders in .*train; put the photographs in train/CLASS/"):
        open_photographs("folder", str(tmp_path))


def test_wordnet_ids_are_put_into_words(tmp_path):
    write(tmp_path, "train/n01443537/a.jpg", "train/n01440764/b.jpg")
    source = open_folder(tmp_path, "train")
    assert source.class_names == ["tench, Tinca tinca", "goldfish, Carassius auratus"]
    assert names(source) == ["train/n01440764/b.jpg", "train/n01443537/a.jpg"]


def test_a_source_can_be_pickled_and_read_by_many_threads_at_once(tmp_path):
    write(tmp_path, *(f"train/{'cat' if i % 2 else 'dog'}/{i}.jpg" for i in range(20)))
    source = open_folder(tmp_path, "train")
    expected = records(source)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.class_names == source.class_names
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: copy[i % 20], range(200))) == expected * 10
    assert copy[np.int64(3)] == expected[3]


def error_of(root, split):
    with pytest.raises(UserError) as caught:
        open_folder(root, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_folder_is_a_user_error_that_names_it(tmp_path):
    assert error_of(tmp_path / "nowhere", "train").startswith(f"there is no folder {tmp_path / 'nowhere'};")
    assert error_of(tmp_path, "train").startswith(f"there is no folder {tmp_path / 'train'};")
    write(tmp_path, "train/cat/a.jpg")
    wanted = f"there is no folder validation or val or valid or dev in {tmp_path};"
    assert error_of(tmp_path, "validation").startswith(wanted)
    assert error_of(tmp_path, "testing").startswith("a folder of photographs has no split 'testing'; use train or")


def test_no_class_folders_is_a_user_error(tmp_path):
    write(tmp_path, "train/a.jpg", "train/.hidden/b.jpg")
    assert error_of(tmp_path, "train").startswith(f"there are no class folders in {tmp_path / 'train'};")


def test_no_photographs_is_a_user_error_that_lists_the_suffixes(tmp_path):
    write(tmp_path, "train/cat/a.gif", "train/dog/.b.jpg")
    message = error_of(tmp_path, "train")
    assert message.startswith(f"there are no photographs in {tmp_path / 'train'};")
    assert ".jpg, .jpeg, .png, .bmp, .webp" in message


def test_a_class_that_train_lacks_is_a_user_error_that_names_it(tmp_path):
    write(tmp_path, "train/cat/a.jpg", "val/cat/a.jpg", "val/dog/a.jpg")
    assert f"class 'dog' of {tmp_path / 'val'} is not one of {tmp_path / 'train'}" in error_of(tmp_path, "validation")


def test_a_folder_that_cannot_be_listed_is_a_user_error_that_names_it(tmp_path, monkeypatch):
    write(tmp_path, "train/cat/a.jpg", "train/dog/a.jpg")
    scandir = os.scandir

    def refuse(path):  # Not permissions: root may list every folder.
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert f"folder {tmp_path / 'train' / 'dog'} cannot be read (Permission denied)" in error_of(tmp_path, "train")


def test_a_photograph_that_is_gone_is_a_user_error_that_names_it(tmp_path):
    write(tmp_path, "train/cat/a.jpg")
    source = open_folder(tmp_path, "train")
    (tmp_path / "train/cat/a.jpg").unlink()
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "train/cat/a.jpg"))):
        source[0]
