import io

import numpy as np
import PIL.Image
import pytest

from resnet_jax.data import chunks, streamed
from resnet_jax.data.chunks import EvalChunks, Loading, TrainChunks
from resnet_jax.data.crops import RandomResized, ScaleJitter
from resnet_jax.data.dataset import Share
from resnet_jax.data.pack import write_pack
from resnet_jax.data.sources.folder import open_folder
from resnet_jax.data.streamed import canvas_for
from resnet_jax.errors import UserError
from tests.data.streamed_photographs import CROP, dataset, photographs, settings, write_folder


def assert_same(batches, expected):
    for batch, wanted in zip(batches, expected, strict=True):
        assert batch.keys() == wanted.keys()
        for key in wanted:
            np.testing.assert_array_equal(batch[key], wanted[key], strict=True)


@pytest.mark.parametrize("crop", [ScaleJitter(shorter_side=(12, 20)), RandomResized()])
def test_training_batches_are_crops_of_the_training_split(crop):
    data = dataset({"train": photographs(9), "validation": photographs(3)}, crop=crop)
    assert (data.num_train, data.count("validation")) == (9, 3)
    assert data.image_shape == (CROP, CROP, 3) and data.crop_size == CROP
    assert data.class_names == ["cat", "dog"]
    assert data.resident("train") is None
    batches = list(data.training_batches(5, 4, 1, 4, Share()))
    make = TrainChunks(data.source("train"), 5, 4, crop, CROP, Share())
    expected = [{key: make(step)[key] for key in ("image", "label")} for step in (1, 2, 3)]
    assert_same(batches, expected)
    assert data.gather(None, batches[0]) is batches[0]


@pytest.mark.parametrize(
    ("splits", "scored"),
    [
        (("train", "validation"), "validation"),
        (("train", "validation", "test"), "validation"),
        (("train", "test"), "test"),
        (("train",), "validation"),  # An error when it is asked for, and none in a run that is only trained.
    ],
)
def test_photographs_are_scored_on_validation_or_else_on_test(splits, scored):
    data = dataset({name: photographs(2) for name in splits})
    assert data.evaluation_split == data.test_split == scored


def test_an_unknown_split_is_a_user_error_that_names_those_there_are():
    data = dataset({"train": photographs(2), "validation": photographs(2)})
    with pytest.raises(UserError, match="folder has no split 'dev'; use train or validation"):
        data.count("dev")


def test_examples_go_by_the_names_of_their_photographs():
    data = dataset({"train": photographs(2), "validation": photographs(4)})
    assert data.example_name("validation", 3) == "3.jpg"


def test_the_settings_say_how_photographs_are_loaded(monkeypatch):
    given = []
    monkeypatch.setattr(streamed, "make_batches", lambda chunks, start, stop, *rest: given.append((start, stop, *rest)))
    monkeypatch.setattr(chunks.cv2, "getNumberOfCPUs", lambda: 6)
    splits = {"train": photographs(5), "validation": photographs(5)}
    for threads, workers in ((3, 2), (0, 2), (0, 0)):
        data = dataset(splits, threads=threads, workers=workers, max_unreadable=1)
        data.training_batches(0, 4, 2, 7, Share())
        data.evaluation_batches("validation", data.single_view("validation"), 4, Share())
    # The cores are shared by the workers; evaluation stays in this process, as it is over before others have started.
    assert given == [
        (2, 7, Loading(3, 2), 1),
        (0, 2, Loading(3, 0), 1),
        (2, 7, Loading(3, 2), 1),
        (0, 2, Loading(6, 0), 1),
        (2, 7, Loading(6, 0), 1),
        (0, 2, Loading(6, 0), 1),
    ]


def test_channel_statistics_are_those_of_imagenet():
    mean, std = dataset({"train": photographs(1)}).channel_statistics()
    np.testing.assert_array_equal(mean, [0.485, 0.456, 0.406])
    np.testing.assert_array_equal(std, [0.229, 0.224, 0.225])


def test_a_folder_of_photographs_is_opened(tmp_path, monkeypatch):
    write_folder(tmp_path / "set", 7)
    write_folder(tmp_path / "set", 3, "val")
    data = settings().load(str(tmp_path / "set"))
    assert (data.num_train, data.count("validation"), data.class_names) == (7, 3, ["cat", "dog"])
    assert (data.name, data.evaluation_split) == ("folder", "validation")
    record = data.source("train")[4]
    assert (record["label"], record["name"]) == (1, "train/dog/001.png")
    assert len(data.source("train").files()) == 7
    # The home folder is found, too.
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings().load("~/set").num_train == 7


@pytest.mark.parametrize(("present", "missing"), [("val", "train"), ("train", "validation")])
def test_one_split_is_enough_where_only_that_is_used(tmp_path, present, missing):
    write_folder(tmp_path / "set", 4, present)
    split = "validation" if present == "val" else present
    write_pack(open_folder(tmp_path / "set", split), tmp_path / "pack", split, 100, ["cat", "dog"], threads=2)
    for name, root in (("folder", tmp_path / "set"), ("packed", tmp_path / "pack")):
        data = settings(name=name, validation_fraction=0.0).load(str(root))
        assert data.class_names == ["cat", "dog"] and data.count(split) == 4
        with pytest.raises(UserError, match=f"{root}.*{missing}|{missing}.*{root}"):
            data.count(missing)


def test_a_pack_gives_the_same_batches_as_what_was_packed(tmp_path):
    records = photographs(7)
    write_pack(records, tmp_path, "train", 100, ["tench", "crane"], threads=2)
    write_pack(records[:3], tmp_path, "test", 100, ["tench", "crane"], threads=2)
    data = settings(name="packed").load(str(tmp_path))
    assert (data.num_train, data.count("test"), data.class_names) == (7, 3, ["tench", "crane"])
    assert data.evaluation_split == "test"
    assert [path.name for path in data.source("train").files()] == ["train.bin", "train.npz"]
    expected = dataset({"train": records}).training_batches(3, 4, 0, 3, Share())
    assert_same(list(data.training_batches(3, 4, 0, 3, Share())), list(expected))


@pytest.mark.parametrize("name", ["folder", "packed"])
def test_photographs_that_are_not_there_are_a_user_error(tmp_path, name):
    with pytest.raises(UserError, match=str(tmp_path / "nowhere")) as caught:
        settings(name=name).load(str(tmp_path / "nowhere"))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=rf"config\.data\.name={name} needs config\.data_dir"):
        settings(name=name).load()


@pytest.fixture
def imagenet_sample(prepared_tfds):
    if not (prepared_tfds / "imagenet2012").is_dir():
        pytest.skip(f"needs a sample of imagenet2012 prepared in {prepared_tfds}")
    return settings(name="imagenet2012").load(str(prepared_tfds))


def test_imagenet_is_opened_and_streamed(imagenet_sample):
    data = imagenet_sample
    assert (data.num_train, data.count("validation"), data.evaluation_split) == (300, 100, "validation")
    assert len(data.class_names) == 1000 and data.class_names[0] == "tench, Tinca tinca"
    assert all(path.is_file() for path in data.source("train").files()) and data.source("train").files()
    (batch,) = data.training_batches(7, 8, 1, 2, Share())
    make = TrainChunks(data.source("train"), 7, 8, ScaleJitter(shorter_side=(12, 20)), CROP, Share())
    np.testing.assert_array_equal(batch["image"], make(1)["image"])
    view = data.single_view("validation")
    batches = list(data.evaluation_batches("validation", view, 64, Share()))
    labels = [data.source("validation")[i]["label"] for i in range(0, 100, 10)]
    assert np.concatenate([batch["label"] for batch in batches])[:100:10].tolist() == labels
    make = EvalChunks(data.source("validation"), view, 32, Share())
    np.testing.assert_array_equal(batches[1]["image"][:32], make(2)["image"])


def test_sizes_of_imagenet_photographs_are_those_of_pillow(imagenet_sample):
    views = imagenet_sample.whole_views("validation", 64)
    for view in views:
        for i in view.indices[:3]:
            with PIL.Image.open(io.BytesIO(imagenet_sample.source("validation")[int(i)]["image"])) as file:
                assert canvas_for(file.size[1], file.size[0], 64) == view.canvas
    assert sum(view.count for view in views) == 100
