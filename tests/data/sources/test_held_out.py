import pickle
from pathlib import Path

import numpy as np
import pytest

from resnet_jax.data.photographs import Photographs
from resnet_jax.data.sources.folder import open_photographs
from resnet_jax.data.sources.held_out import held_out, with_validation


@pytest.fixture
def folder(tmp_path) -> Path:
    """ROOT/CLASS/NUMBER.jpg: 20 of a, 7 of b, 2 of c and 1 of d, which hold their own names."""
    for name, count in (("a", 20), ("b", 7), ("c", 2), ("d", 1)):
        for number in range(count):
            path = tmp_path / name / f"{number:02}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(f"{name}/{number:02}.jpg".encode())
    return tmp_path


def names(source):
    return [source[i]["name"] for i in range(len(source))]


def test_a_part_of_each_class_is_held_out_and_nothing_is_in_both(folder, capsys):
    opened = with_validation(open_photographs("folder", str(folder)), 0.2)
    assert opened.splits == ("train", "validation")
    train, validation = map(opened.open_split, opened.splits)
    assert len(train) == 24 and not set(names(train)) & set(names(validation))
    counts = np.bincount(validation.labels(), minlength=4)
    np.testing.assert_array_equal(counts, [4, 1, 1, 0])  # 0.2 of 20, 7 and 2, and nothing of a single one.
    assert [source[0]["label"] for source in (train, validation)] == [0, 0]
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "6 of the 30 training photographs" in message
    assert names(pickle.loads(pickle.dumps(validation))) == names(validation)


def test_parts_of_the_same_files_by_other_labels_are_told_apart(folder):
    opened = open_photographs("folder", str(folder))

    def part(labels):
        class Relabelled:
            def labels(self):
                return np.array(labels, np.int32)

        return with_validation(opened._replace(open_split=lambda split: Relabelled()), 0.25).part

    assert part([0] * 8 + [1] * 4) == part([0] * 8 + [1] * 4) != part([0] * 4 + [1] * 8)


def test_the_same_ones_are_held_out_again_and_they_are_not_just_the_first():
    labels = np.repeat([0, 1], 50)
    held = held_out(labels, 0.1)
    np.testing.assert_array_equal(held, held_out(labels, 0.1))
    assert held.sum() == 10 and not held[:5].all() and (held[:50] != held[50:]).any()


def test_splits_that_there_are_stay(folder, tmp_path, capsys):
    root = tmp_path / "splits"
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        (folder / "a").rename(root / split / "a") if split == "train" else (folder / "b").rename(root / split / "a")
    opened = open_photographs("folder", str(root))
    assert with_validation(opened, 0.5) is opened and opened.splits == ("train", "validation")
    alone = open_photographs("folder", str(root / "train"))
    assert with_validation(alone, 0.0) is alone
    assert not capsys.readouterr().err


def test_a_mean_image_of_a_part_is_not_that_of_the_whole(folder):
    """What is cached of a training split must tell the parts of the same files apart."""
    parts = [Photographs(name="folder", validation_fraction=fraction).load(str(folder)) for fraction in (0.0, 0.2, 0.4)]
    assert len({dataset.opened.part for dataset in parts}) == 3
