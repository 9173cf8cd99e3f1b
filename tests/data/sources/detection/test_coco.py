import json
import pickle

import numpy as np
import pytest

from resnet_jax.data.sources.detection import open_detection
from resnet_jax.errors import UserError

CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 13, "name": "stop sign"}]
IMAGES = [{"id": 42, "file_name": "b.jpg"}, {"id": 7, "file_name": "a.jpg"}, {"id": 50, "file_name": "empty.jpg"}]
ANNOTATIONS = [
    {"id": 1, "image_id": 42, "category_id": 90, "bbox": [1.5, 2, 10, 20.25], "area": 60.5, "iscrowd": 0},
    {"id": 2, "image_id": 7, "category_id": 13, "bbox": [0, 0, 4, 5], "area": 19, "iscrowd": 1},
    {"id": 3, "image_id": 42, "category_id": 1, "bbox": [3, 4, 5, 6]},
]


@pytest.fixture
def folder(tmp_path):
    for image in IMAGES:
        (tmp_path / "val2017").mkdir(exist_ok=True)
        (tmp_path / "val2017" / image["file_name"]).write_text(image["file_name"])
    describe(tmp_path)
    return tmp_path


def describe(root, name="instances_val2017", **changes):
    content = {"images": IMAGES, "categories": CATEGORIES, "annotations": ANNOTATIONS} | changes
    (root / "annotations").mkdir(exist_ok=True)
    path = root / "annotations" / f"{name}.json"
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def opened(root, split="val2017", classes=()):
    return open_detection("coco", str(root), [split], classes)


def test_photographs_are_sorted_by_id_and_categories_become_labels_in_a_row(folder):
    for _ in range(2):  # Anew, and from the cache.
        found = opened(folder)
        assert found.class_names == ["person", "stop sign", "toothbrush"] and found.category_ids == [1, 13, 90]
        first = found.open_split("val2017")
        for source in (first, pickle.loads(pickle.dumps(first))):
            assert [source[i]["name"] for i in range(len(source))] == ["a.jpg", "b.jpg", "empty.jpg"]
            assert source[1]["image"] == b"b.jpg" and [source.image_id(i) for i in range(3)] == [7, 42, 50]
            objects = source.objects(1)
            np.testing.assert_array_equal(objects.boxes, [[1.5, 2, 11.5, 22.25], [3, 4, 8, 10]])
            assert objects.labels.tolist() == [2, 0] and objects.areas.tolist() == [60.5, 30]
            assert source.objects(0).crowd.tolist() == [True] and not objects.crowd.any()
            assert not objects.difficult.any() and len(source.objects(2).labels) == 0
    assert np.array(found.category_ids)[objects.labels].tolist() == [90, 1]


def test_a_file_that_changed_is_read_anew(folder):
    assert len(opened(folder).open_split("val2017").objects(1).labels) == 2
    describe(folder, annotations=ANNOTATIONS[:2])
    assert len(opened(folder).open_split("val2017").objects(1).labels) == 1


def test_a_list_of_images_alone_has_no_objects(folder):
    describe(folder, "image_info_test-dev2017", annotations=None)
    (folder / "val2017").rename(folder / "test2017")
    source = opened(folder, "test-dev2017").open_split("test-dev2017")
    assert len(source) == 3 and source[0]["image"] == b"a.jpg" and len(source.objects(0).boxes) == 0


def test_a_split_of_ones_own_may_be_named_as_test_dev_is(folder):
    describe(folder, "image_info_cells-dev", annotations=None)
    (folder / "val2017").rename(folder / "cells-dev")
    (folder / "cells").mkdir()
    assert opened(folder, "cells-dev").open_split("cells-dev")[0]["image"] == b"a.jpg"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"images": [', "Expecting value"),
        ("[]", "is not COCO's JSON"),
        ('{"images": [], "annotations": []}', "KeyError 'categories'"),
        ({"annotations": [ANNOTATIONS[0] | {"bbox": [1, 2, 3]}]}, "not enough values to unpack"),
        ({"annotations": [ANNOTATIONS[0] | {"bbox": [1, 2, 3, float("nan")]}]}, "a box is not finite"),
        ({"annotations": [ANNOTATIONS[0] | {"category_id": 5}]}, "KeyError 5"),
        ({"annotations": [ANNOTATIONS[0] | {"image_id": 5}]}, "KeyError 5"),
        ({"images": [IMAGES[0], IMAGES[0]]}, "an id occurs twice"),
        ({"images": [], "annotations": []}, "lists no photographs"),
    ],
)
def test_a_broken_file_is_a_user_error_of_one_line_that_names_it(folder, content, reason):
    path = describe(folder, **(content if isinstance(content, dict) else {}))
    if isinstance(content, str):
        path.write_text(content)
    with pytest.raises(UserError) as caught:
        opened(folder)
    assert reason in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_missing_or_does_not_fit_is_named(folder):
    with pytest.raises(UserError, match=r"needs config\.data_dir"):
        open_detection("coco", None, ["val2017"])
    with pytest.raises(UserError, match=r"there is no file \S+instances_train2017.json"):
        opened(folder, "train2017")
    with pytest.raises(UserError, match=r"names its classes itself; remove it"):
        opened(folder, classes=("person",))
    describe(folder, "instances_other2017", categories=CATEGORIES[:2], annotations=[])
    (folder / "val2017").rename(folder / "other2017")
    with pytest.raises(UserError, match=r"photograph \S+/val2017/a.jpg is missing"):
        opened(folder)
    (folder / "val2017").symlink_to(folder / "other2017")
    with pytest.raises(UserError, match=r"the categories of other2017 and val2017 in \S+ differ"):
        opened(folder).open_split("other2017")
