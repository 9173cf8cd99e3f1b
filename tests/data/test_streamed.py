import io
import math
import os

import numpy as np
import PIL.Image
import pytest

from resnet_jax.data import Photographs, chunks, streamed
from resnet_jax.data.chunks import EvalChunks, Loading, TrainChunks
from resnet_jax.data.crops import RandomResized, ScaleJitter
from resnet_jax.data.dataset import Share
from resnet_jax.data.decode.boxes import CentralCrop, whole_box
from resnet_jax.data.decode.images import crop_and_resize
from resnet_jax.data.order import example_indices
from resnet_jax.data.pack import write_pack
from resnet_jax.data.sources.folder import open_folder
from resnet_jax.data.sources.protocol import Opened
from resnet_jax.data.streamed import ASPECTS, StreamedDataset, canvas_for, resized_size
from resnet_jax.errors import UserError

CROP = 10
SCALES = (224, 256, 384, 480, 640)


class Source(list):
    """Records in memory."""

    shorter_side = None

    def files(self):
        return []


def settings(**values):
    defaults = {"crop": ScaleJitter(shorter_side=(12, 20)), "crop_size": CROP, "eval_shorter_side": 12, "threads": 2}
    return Photographs(**defaults | {"name": "folder"} | values)


def dataset(splits, **values):
    """Of records, by split."""
    splits = {name: Source(records) for name, records in splits.items()}
    return StreamedDataset(Opened(tuple(splits), splits.__getitem__, ["cat", "dog"]), settings(**values))


def photographs(count):
    """Pixels of many sizes; none is 0."""
    found = []
    for i in range(count):
        pixels = np.random.default_rng(i).integers(60, 256, size=(11 + i % 7, 23 - i % 9, 3), dtype=np.uint8)
        found.append({"image": pixels, "label": i % 2, "name": f"{i}.jpg"})
    return found


def write_folder(root, count, split="train"):
    """ROOT/SPLIT/CLASS/*.png, of two classes."""
    for i, record in enumerate(photographs(count)):
        path = root / split / ("cat", "dog")[i % 2] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(record["image"]).save(path)


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


@pytest.mark.parametrize(
    ("view", "sides", "photograph", "box", "size"),
    [
        # Of the side 20 the central 10: half of the shorter side.
        ("single", (20, 10), (30, 40), (7, 12, 15, 15), (10, 10)),
        ("single", (20, 10), (8, 5), (3, 1, 2, 2), (10, 10)),
        ("single", (10, 10), (30, 20), (5, 0, 20, 20), (10, 10)),
        ("square", (8, 6), (30, 41), (0, 5, 30, 30), (8, 8)),
        ("square", (8, 6), (6, 5), (0, 0, 5, 5), (8, 8)),
        ("whole", 10, (20, 50), (0, 0, 20, 50), (10, 25)),
        ("whole", 10, (8, 5), (0, 0, 8, 5), (16, 10)),
        ("whole", 10, (9, 9), (0, 0, 9, 9), (10, 10)),
    ],
)
def test_a_view_is_a_box_resized_at_the_top_left_of_zeros(view, sides, photograph, box, size):
    pixels = np.random.default_rng(0).integers(60, 256, size=(*photograph, 3), dtype=np.uint8)
    record = {"image": pixels, "label": 1, "name": ""}
    shorter_side, crop = (12, CROP) if view == "whole" else sides
    data = dataset({"train": [], "validation": [record]}, eval_shorter_side=shorter_side, crop_size=crop)
    if view == "whole":
        (chosen,) = data.whole_views("validation", sides)
    else:
        chosen = getattr(data, f"{view}_view")("validation")
        assert chosen.canvas == size
    assert chosen.count == 1
    (batch,) = data.evaluation_batches("validation", chosen, 1, Share())
    top, left, height, width = box
    expected = np.zeros((*chosen.canvas, 3), np.uint8)
    expected[: size[0], : size[1]] = crop_and_resize(pixels[top : top + height, left : left + width], whole_box, size)
    np.testing.assert_array_equal(batch["image"], expected[None])
    assert batch["size"].tolist() == [list(size)] and batch["label"].tolist() == [1]


@pytest.mark.parametrize(
    ("photograph", "shorter_side", "expected"),
    [
        ((375, 500), 256, (256, 341)),
        ((500, 375), 256, (341, 256)),
        ((375, 500), 640, (640, 853)),
        ((300, 300), 224, (224, 224)),
        ((1, 1000), 4, (4, 4000)),
        # 49 * (1 / 49) is below 1 in floating point.
        ((49, 50), 1, (1, 1)),
    ],
)
def test_resized_size(photograph, shorter_side, expected):
    assert resized_size(*photograph, shorter_side) == expected


def many_sizes():
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (1, 1000), (375, 500), (500, 375), (333, 500), (2000, 3000), (224, 224), (225, 224), (7, 6000)]
    return sizes + [tuple(map(int, size)) for size in np.exp(rng.uniform(np.log(20), np.log(3000), (2000, 2)))]


def most_canvases(sizes):
    """Upright and lying: one for each of ASPECTS, and for each double of the last that the longest needs."""
    longest = max(max(size) / min(size) for size in sizes if min(size))
    doubles = max(0, math.ceil(math.log2(longest / ASPECTS[-1])))
    return 2 * (len(ASPECTS) + doubles) - 1


@pytest.mark.parametrize("scale", [*SCALES, 40, 97])
def test_a_canvas_holds_the_photograph_and_there_are_few(scale):
    canvases = set()
    sizes = many_sizes()
    for height, width in sizes:
        canvas = canvas_for(height, width, scale)
        resized = resized_size(height, width, scale)
        assert canvas[0] >= resized[0] and canvas[1] >= resized[1]
        assert canvas[0] % 32 == canvas[1] % 32 == 0
        assert canvas_for(width, height, scale) == canvas[::-1]
        assert min(canvas) < scale + 32
        canvases.add(canvas)
    assert len(canvases) <= most_canvases(sizes)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [(500, 500), (375, 500), (500, 333), (480, 640), (1200, 800)])
def test_usual_photographs_leave_little_of_their_canvas_empty(size, scale):
    canvas, resized = canvas_for(*size, scale), resized_size(*size, scale)
    assert np.prod(resized) > 0.89 * np.prod(canvas)


def blank(sizes):
    """Photographs of given sizes; one without pixels is a file that cannot be read."""
    return [
        {"image": np.zeros((*size, 3), np.uint8) if size[0] else b"no photograph", "label": 0, "name": str(i)}
        for i, size in enumerate(sizes)
    ]


def test_every_photograph_is_in_one_whole_view_of_each_scale(capsys):
    sizes = [size for size in many_sizes() if max(size) < 300][:100]
    sizes[17] = (0, 0)
    data = dataset({"train": [], "validation": blank(sizes)})
    for scale in SCALES:
        views = data.whole_views("validation", scale)
        indices = np.concatenate([view.indices for view in views])
        assert sorted(indices) == [i for i in range(100) if i != 17]
        assert sum(view.count for view in views) == 99
        canvases = [view.canvas for view in views]
        assert sorted(set(canvases)) == canvases and len(canvases) <= most_canvases(sizes)
        for view in views:
            for i in view.indices:
                assert view.choose_box(*sizes[i]) == (0, 0, *sizes[i])
                assert view.choose_size(*sizes[i]) == resized_size(*sizes[i], scale)
                assert (np.array(view.choose_size(*sizes[i])) <= view.canvas).all()
    # The headers are read once for all scales.
    assert capsys.readouterr().err.count("warning: 17 ") == 1


def test_whole_views_stop_beyond_the_limit_of_undecodable_photographs():
    data = dataset({"train": [], "validation": blank([(9, 9), (0, 0)])}, max_unreadable=0)
    with pytest.raises(UserError, match=r"^1 photographs cannot be decoded, more than config\.data\.max_unreadable 0;"):
        data.whole_views("validation", 20)


def test_a_pack_of_photographs_smaller_than_the_scale_is_refused(tmp_path):
    for split in ("train", "validation"):
        write_pack(blank([(50, 60), (60, 50)]), tmp_path, split, 40, ["a"])
    data = settings(name="packed").load(str(tmp_path))
    with pytest.raises(UserError, match=r"at most 40 pixels, fewer than the 41 .* --shorter_side \(640 for") as caught:
        data.whole_views("validation", 41)
    assert "\n" not in str(caught.value)
    assert [view.canvas for view in data.whole_views("validation", 32)] == [(32, 64), (64, 32)]
    assert [view.canvas for view in data.whole_views("validation", 40)] == [(64, 64)]


@pytest.mark.parametrize(("interpolation", "filter"), [("bilinear", "BILINEAR"), ("bicubic", "BICUBIC")])
def test_every_view_is_resized_by_the_chosen_filter(interpolation, filter):
    records = photographs(5)
    data = dataset({"train": records, "validation": records}, interpolation=interpolation, crop=RandomResized())

    def resized(record, height, width):
        return np.asarray(PIL.Image.fromarray(record["image"]).resize((width, height), PIL.Image.Resampling[filter]))

    def images(view):
        (batch,) = data.evaluation_batches("validation", view, 5, Share())
        return batch["image"].astype(int)

    for view, crop in ((data.single_view("validation"), CROP), (data.square_view("validation"), 12)):
        for image, record in zip(images(view), records, strict=True):
            height, width = (int(12 * side / min(record["image"].shape[:2])) for side in record["image"].shape[:2])
            top, left = round((height - crop) / 2), round((width - crop) / 2)
            wanted = resized(record, height, width)[top : top + crop, left : left + crop]
            assert np.abs(image - wanted).max() <= 1  # Pillow keeps the box in float32.
    for view in data.whole_views("validation", 16):
        batch = next(data.evaluation_batches("validation", view, len(view.indices), Share()))
        for image, (height, width), index in zip(batch["image"], batch["size"], batch["index"], strict=True):
            np.testing.assert_array_equal(image[:height, :width], resized(records[index], height, width))

    (batch,) = data.training_batches(3, 5, 0, 1, Share())
    order = example_indices(3, np.arange(5), 5, 1, 5)
    for position, (image, index) in enumerate(zip(batch["image"], order, strict=True)):
        pixels, rng = records[index]["image"], np.random.default_rng((3, position))
        top, left, height, width = RandomResized().box(rng, *pixels.shape[:2], CROP)
        cut = {"image": pixels[top : top + height, left : left + width]}
        np.testing.assert_array_equal(image, resized(cut, CROP, CROP))


def broken(record):
    return record | {"image": b"garbage", "name": "broken.jpg"}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("chunk", [1, 32])
def test_the_mean_image_is_the_mean_of_the_central_crops(monkeypatch, threads, chunk):
    # Batches of 8, and one of 256 that holds all.
    for module in (chunks, streamed):
        monkeypatch.setattr(module, "CHUNK", chunk)
    records = photographs(21)
    cut = [
        crop_and_resize(record["image"], CentralCrop(12, CROP).box, (CROP, CROP))
        for i, record in enumerate(records)
        if i != 2
    ]
    records[2] = broken(records[2])
    mean = dataset({"train": records}, threads=threads, max_unreadable=1).mean_image()
    assert mean.shape == (CROP, CROP, 3) and mean.dtype == np.float64
    np.testing.assert_allclose(mean, np.mean(cut, axis=0, dtype=np.float64) / 255, rtol=1e-12)


def refuse(*_):
    raise AssertionError("not to be called")


def test_too_many_undecodable_photographs_are_a_user_error_and_no_mean_is_kept():
    records = photographs(4)
    spoiled = [*records[:3], broken(records[3])]
    with pytest.raises(UserError, match=r"^1 photographs cannot be decoded, more than config\.data\.max_unreadable 0;"):
        dataset({"train": spoiled}, max_unreadable=0).mean_image()
    dataset({"train": records}, max_unreadable=0).mean_image()


def test_the_mean_is_computed_once_for_the_same_photographs_and_crops(tmp_path, monkeypatch):
    write_folder(tmp_path, 5)
    first = settings().load(str(tmp_path)).mean_image()
    with monkeypatch.context() as patch:
        patch.setattr(StreamedDataset, "_mean_image", refuse)
        np.testing.assert_array_equal(settings().load(str(tmp_path)).mean_image(), first, strict=True)
    # Other crops have a mean of their own.
    assert settings(crop_size=6).load(str(tmp_path)).mean_image().shape == (6, 6, 3)
    assert not np.array_equal(settings(eval_shorter_side=10).load(str(tmp_path)).mean_image(), first)


def add(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.full((20, 20, 3), value, np.uint8)).save(path)


def test_the_mean_of_a_folder_is_computed_anew_when_a_photograph_is_added_or_overwritten(tmp_path):
    add(tmp_path / "train/cat/0.png", 0)
    assert settings(validation_fraction=0.0).load(str(tmp_path)).mean_image().mean() == 0
    add(tmp_path / "train/cat/1.png", 255)
    assert settings(validation_fraction=0.0).load(str(tmp_path)).mean_image().mean() == 0.5
    # In place, which leaves the times of the folders as they are, and the size of the file, too.
    path = tmp_path / "train/cat/1.png"
    before, data = path.stat(), path.read_bytes()
    folder_times = [folder.stat().st_mtime_ns for folder in (path.parent, path.parent.parent)]
    add(tmp_path / "51.png", 51)
    replacement = (tmp_path / "51.png").read_bytes().ljust(len(data), b"\0")
    with path.open("r+b") as file:
        file.write(replacement)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert len(replacement) == len(data)
    assert [folder.stat().st_mtime_ns for folder in (path.parent, path.parent.parent)] == folder_times
    assert abs(settings(validation_fraction=0.0).load(str(tmp_path)).mean_image().mean() - 0.1) < 1e-9


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
        with pytest.raises(UserError, match=f"{root}.*{missing}"):
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
