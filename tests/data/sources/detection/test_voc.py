import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from resnet_jax.data.sources.detection import open_detection
from resnet_jax.data.sources.detection.voc import VOC_CLASSES, read_xml
from resnet_jax.errors import UserError

BCCD = Path(__file__).resolve().parents[5] / "shared" / "detection" / "bccd"


def xml(*objects):
    """Of (name, box) or (name, box, difficult)."""
    found = "".join(
        f"<object><name>{name}</name>{''.join(f'<difficult>{flag}</difficult>' for flag in rest)}"
        f"<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
        f"<bndbox><xmax>{box[2]}</xmax><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><ymax>{box[3]}</ymax></bndbox></object>"
        for name, box, *rest in objects
    )
    return f"<annotation><size><width>9</width></size>{found}</annotation>"


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


@pytest.fixture
def devkit(tmp_path):
    """VOC2007 with the photographs a and b, VOC2012 with c; the lists have the flags of a class beside some."""
    for year, found in {"VOC2007": "ab", "VOC2012": "c"}.items():
        for one in found:
            write(tmp_path / year / "JPEGImages" / f"{one}.jpg", f"photograph {one}")
        write(
            tmp_path / year / "ImageSets" / "Main" / "trainval.txt", "".join(f"{one}  1\n" for one in reversed(found))
        )
    write(tmp_path / "VOC2007" / "Annotations" / "a.xml", xml(("dog", (1, 1, 20, 30), 0), ("cat", (5, 6, 7, 8), 1)))
    write(tmp_path / "VOC2007" / "Annotations" / "b.xml", xml())
    write(tmp_path / "VOC2012" / "Annotations" / "c.xml", xml(("tvmonitor", ("2.5", 3, "9.25", 4))))
    return tmp_path


def opened(root, *splits, name="voc", classes=()):
    return open_detection(name, str(root), splits, classes)


def test_photographs_and_objects_are_those_of_the_list(devkit):
    found = opened(devkit, "VOC2007:trainval")
    assert found.class_names == VOC_CLASSES and len(VOC_CLASSES) == 20 and found.category_ids == list(range(20))
    first = found.open_split("VOC2007:trainval")
    for source in (first, pickle.loads(pickle.dumps(first))):
        assert [source[i]["image"] for i in range(len(source))] == [b"photograph b", b"photograph a"]
        assert source[1]["name"] == "JPEGImages/a.jpg" and source[1]["label"] == 0
        assert len(source.objects(0).labels) == 0 and source.objects(0).boxes.shape == (0, 4)
        objects = source.objects(1)
        # From (1, 1) on, so one less at the top left alone: the box around 20 x 30 pixels is (0, 0, 20, 30).
        np.testing.assert_array_equal(objects.boxes, [[0, 0, 20, 30], [4, 5, 7, 8]])
        assert [VOC_CLASSES[label] for label in objects.labels] == ["dog", "cat"]
        assert objects.difficult.tolist() == [False, True] and not objects.crowd.any()
        np.testing.assert_array_equal(objects.areas, [600, 9])
    assert {path.name for path in source.files()} == {"a.jpg", "b.jpg", "a.xml", "b.xml"}


def test_a_folder_below_is_named_before_the_split_and_corners_may_be_fractions(devkit):
    found = opened(devkit / "VOC2012", "trainval").open_split("trainval")
    np.testing.assert_array_equal(found.objects(0).boxes, [[1.5, 2, 9.25, 4]])
    np.testing.assert_array_equal(
        opened(devkit, "VOC2012:trainval").open_split("VOC2012:trainval").objects(0).boxes, [[1.5, 2, 9.25, 4]]
    )


def test_classes_are_those_given_or_those_found(devkit):
    write(devkit / "VOC2012" / "Annotations" / "c.xml", xml(("zebra", (1, 1, 2, 2)), ("cell", (1, 1, 2, 2))))
    found = opened(devkit, "VOC2012:trainval")
    assert found.class_names == ["cell", "zebra"] and found.open_split("VOC2012:trainval").objects(
        0
    ).labels.tolist() == [1, 0]
    given = opened(devkit, "VOC2012:trainval", classes=("zebra", "dog", "cell"))
    assert given.class_names == ["zebra", "dog", "cell"]
    assert given.open_split("VOC2012:trainval").objects(0).labels.tolist() == [0, 2]
    source = opened(devkit, "VOC2007:trainval").open_split("VOC2007:trainval")
    assert [VOC_CLASSES[label] for label in source.objects(1).labels] == ["dog", "cat"]
    with pytest.raises(UserError, match=r"class 'zebra' in \S+c.xml is none of the 20 .* config.data.classes"):
        opened(devkit, "VOC2007:trainval").open_split("VOC2012:trainval").objects(0)


@pytest.mark.parametrize("box", [(5, 5, 5, 5), (5, 5, 9, 5), (9, 5, 5, 9)])
def test_a_box_whose_last_pixel_is_not_beyond_the_first_has_no_area(tmp_path, box):
    write(tmp_path / "a.xml", xml(("dog", box)))
    (found,) = read_xml(tmp_path / "a.xml")[1]
    assert found[2] <= found[0] or found[3] <= found[1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("<annotation><object>", "no element found"),
        ("", "no element found"),
        (xml(("dog", (1, "one", 3, 4))), "could not convert string to float: 'one'"),
        (xml(("dog", (1, "nan", 3, 4))), "a corner is not finite"),
        ("<a><object><name>dog</name></object></a>", "could not convert string to float: 'missing'"),
        (xml(("", (1, 1, 3, 4))), "an object has no name"),
    ],
)
def test_a_broken_annotation_is_a_user_error_of_one_line_that_names_it(devkit, content, reason):
    path = devkit / "VOC2007" / "Annotations" / "a.xml"
    path.write_text(content)
    with pytest.raises(UserError, match=re.escape(reason)) as caught:
        opened(devkit, "VOC2007:trainval")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("missing", "error"),
    [
        ("VOC2007/JPEGImages/a.jpg", r"photograph \S+/JPEGImages/a.jpg is missing; .* take it off trainval.txt"),
        ("VOC2007/Annotations/a.xml", r"annotation \S+/a.xml is missing"),
        ("VOC2007/ImageSets/Main/trainval.txt", r"the list of photographs \S+trainval.txt cannot be read"),
    ],
)
def test_what_is_missing_is_named(devkit, missing, error):
    (devkit / missing).unlink()
    with pytest.raises(UserError, match=error) as caught:
        opened(devkit, "VOC2007:trainval")
    assert "\n" not in str(caught.value)


def test_a_missing_or_empty_folder_or_list_is_named(devkit):
    with pytest.raises(UserError, match=r"needs config\.data_dir"):
        open_detection("voc", None, ["trainval"])
    with pytest.raises(UserError, match="elsewhere does not exist"):
        opened(devkit / "elsewhere", "trainval")
    write(devkit / "VOC2007" / "ImageSets" / "Main" / "trainval.txt", "\n")
    with pytest.raises(UserError, match=r"trainval.txt is empty"):
        opened(devkit, "VOC2007:trainval")


@pytest.fixture
def imagenet(tmp_path):
    """Two photographs of two classes to train on, and two for validation."""
    for one, name in {"n01440764/x_1": "n01440764", "n01443537/y_2": "n01443537"}.items():
        write(tmp_path / "Data" / "CLS-LOC" / "train" / f"{one}.JPEG", one)
        write(tmp_path / "Annotations" / "CLS-LOC" / "train" / f"{one}.xml", xml((name, (0, 0, 9, 19))))
    for one in ("v_1", "v_2"):
        write(tmp_path / "Data" / "CLS-LOC" / "val" / f"{one}.JPEG", one)
        write(tmp_path / "Annotations" / "CLS-LOC" / "val" / f"{one}.xml", xml(("n01443537", (4, 5, 6, 7))))
    return tmp_path


def test_imagenet_counts_pixels_from_0_and_its_classes_have_words(imagenet):
    found = opened(imagenet, "CLS-LOC:train", name="imagenet")
    assert found.class_names == ["tench, Tinca tinca", "goldfish, Carassius auratus"]
    source = found.open_split("CLS-LOC:train")
    assert [source[i]["image"] for i in range(2)] == [b"n01440764/x_1", b"n01443537/y_2"]
    assert [source.objects(i).labels.tolist() for i in range(2)] == [[0], [1]]
    np.testing.assert_array_equal(source.objects(0).boxes, [[0, 0, 10, 20]])
    assert len(found.open_split("CLS-LOC:val")) == 2


def test_a_list_chooses_among_imagenets_photographs(imagenet):
    write(imagenet / "ImageSets" / "CLS-LOC" / "val2.txt", "v_2 1\n")
    source = opened(imagenet, "CLS-LOC:train", name="imagenet").open_split("CLS-LOC:val2")
    assert len(source) == 1 and source[0]["image"] == b"v_2"


def test_what_is_missing_of_imagenet_is_named(imagenet):
    with pytest.raises(UserError, match="use CLS-LOC:train or DET:train"):
        opened(imagenet, "train", name="imagenet")
    with pytest.raises(UserError, match=r"no annotations in \S+/DET/val"):
        opened(imagenet, "DET:val", name="imagenet")
    (imagenet / "Data" / "CLS-LOC" / "val" / "v_1.JPEG").unlink()
    with pytest.raises(UserError, match=r"photograph \S+/v_1.JPEG is missing"):
        opened(imagenet, "CLS-LOC:val", name="imagenet")


def test_photographs_of_imagenet_without_an_annotation_are_left_out_unless_they_are_listed(imagenet):
    """Of the 1.28 million to train on, half a million have boxes."""
    write(imagenet / "Data" / "CLS-LOC" / "train" / "n01440764" / "x_3.JPEG", "without boxes")
    assert len(opened(imagenet, "CLS-LOC:train", name="imagenet").open_split("CLS-LOC:train_loc")) == 2
    write(imagenet / "ImageSets" / "CLS-LOC" / "train_loc.txt", "n01440764/x_1 1\nn01440764/x_3 2\n")
    with pytest.raises(UserError, match=r"annotation \S+/n01440764/x_3.xml is missing; .* off the list"):
        opened(imagenet, "CLS-LOC:train_loc", name="imagenet")


def test_several_boxes_of_imagenet_and_a_broken_annotation(imagenet):
    path = imagenet / "Annotations" / "CLS-LOC" / "train" / "n01440764" / "x_1.xml"
    path.write_text(xml(("n01440764", (0, 0, 9, 19)), ("n01440764", (4, 4, 5, 8))))
    source = opened(imagenet, "CLS-LOC:train", name="imagenet").open_split("CLS-LOC:train")
    np.testing.assert_array_equal(source.objects(0).boxes, [[0, 0, 10, 20], [4, 4, 6, 9]])
    assert source.objects(0).labels.tolist() == [0, 0]
    path.write_text("<annotation><object>")
    with pytest.raises(UserError, match=r"annotation \S+/x_1.xml is not VOC's XML") as caught:
        opened(imagenet, "CLS-LOC:train", name="imagenet")
    assert "\n" not in str(caught.value)


def test_the_blood_cells(devkit):
    if not BCCD.is_dir():
        pytest.skip(f"needs the photographs of blood cells in {BCCD}")
    found = opened(BCCD, "train")
    assert found.class_names == ["Platelets", "RBC", "WBC"]
    train, val = found.open_split("train"), found.open_split("val")
    assert (len(train), len(val)) == (205, 87)
    boxes = np.concatenate([source.objects(i).boxes for source in (train, val) for i in range(len(source))])
    assert len(boxes) == 3943 and ((boxes[:, 2:] <= boxes[:, :2]).any(axis=1)).sum() == 2
    assert boxes.min() >= -1 and boxes[:, 2].max() <= 640 and boxes[:, 3].max() <= 480
