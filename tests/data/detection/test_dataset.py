import io
import re
from collections import Counter

import jax
import numpy as np
import PIL.Image
import pytest
from pydantic import ValidationError

from resnet_jax.data import DetectionData
from resnet_jax.data.crops import ScaleJitter
from resnet_jax.data.dataset import Share
from resnet_jax.data.decode.boxes import Whole, whole_box
from resnet_jax.data.decode.images import crop_and_resize
from resnet_jax.data.detection.dataset import DetectionDataset
from resnet_jax.data.sources.detection.protocol import OpenedDetection, make_objects
from resnet_jax.errors import UserError

KEYS = {"image", "image_hw", "scale", "boxes", "labels", "crowd", "difficult", "valid", "index"}
WHOLE = Share()
SETTINGS = DetectionData(
    train=("train",),
    validation=("val",),
    test=(),
    short_sides=(16, 24),
    max_side=32,
    canvas_stride=8,
    max_boxes=4,
    threads=2,
)


class Source:
    """Photographs of noise, of which every third is upright; photograph i has i % 4 objects, all of class i % 3."""

    shorter_side = None

    def __init__(self, count, broken=(), square=False):
        self.count, self.broken, self.square = count, broken, square

    def size(self, i):
        return (20, 20) if self.square else (30 + i % 5, 22) if i % 3 == 2 else (21, 26 + i % 7)

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        pixels = np.random.default_rng(i).integers(1, 256, (*self.size(i), 3), dtype=np.uint8)
        if i in self.broken:
            file = io.BytesIO()
            PIL.Image.fromarray(pixels).save(file, "JPEG")
            pixels = file.getvalue()[:-200]
        return {"image": pixels, "label": 0, "name": f"{i}.jpg"}

    def objects(self, i):
        boxes = [[2.0 + k, 3, 9 + i % 4, 15] for k in range(i % 4)]
        return make_objects(boxes, [i % 3] * (i % 4), crowd=[i % 8 == 1] * (i % 4))

    def image_id(self, i):
        return 1000 + i

    def files(self):
        return []


def dataset(settings=SETTINGS, train=23, val=13, **options):
    sources = {"train": Source(train, **options), "val": Source(val, **options), "more": Source(5, **options)}
    return DetectionDataset(OpenedDetection(sources.__getitem__, ["cat", "dog", "eel"], [0, 1, 2]), settings)


def training(data, batch_size, start, stop, share=WHOLE, seed=3):
    return list(data.training_batches(seed, batch_size, start, stop, share))


def evaluation(data, batch_size, share=WHOLE):
    views = data.whole_views("validation")
    return [batch for view in views for batch in data.evaluation_batches("validation", view, batch_size, share)]


def assert_same(batches, expected):
    for batch, wanted in zip(batches, expected, strict=True):
        assert batch.keys() == wanted.keys()
        for key in wanted:
            np.testing.assert_array_equal(batch[key], wanted[key], strict=True)


def joined(parts_of_batches):
    return [
        {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        for parts in zip(*parts_of_batches, strict=True)
    ]


def test_what_the_batches_hold():
    data = dataset()
    batches = training(data, 4, 0, 12)
    assert (
        {batch["image"].shape[1:] for batch in batches}
        == {(24, 32, 3), (32, 24, 3)}
        == {(*canvas, 3) for canvas in data.training_canvases}
    )
    assert data.image_shape == (24, 32, 3)
    sides, flips = set(), set()
    for step, batch in enumerate(batches):
        assert batch.keys() == KEYS
        assert batch["image"].dtype == np.uint8 and batch["index"].dtype == batch["image_hw"].dtype == np.int32
        for row, index in enumerate(batch["index"]):
            source = data.photographs("train").source
            pixels, size = source[int(index)]["image"], Source(1).size(int(index))
            height, width = batch["image_hw"][row]
            rng = np.random.default_rng((3, 4 * step + row))  # Of the place in the run alone.
            side, mirrored = (16, 24)[rng.integers(2)], rng.random() < 0.5
            assert (height, width) == Whole(side, 32).resized(*size)
            sides.add(int(min(height, width)))
            np.testing.assert_allclose(batch["scale"][row], [height / size[0], width / size[1]], rtol=1e-6)
            image = crop_and_resize(pixels, whole_box, (int(height), int(width)), fast=True)
            objects = source.objects(int(index))
            boxes = objects.boxes * batch["scale"][row][[1, 0, 1, 0]]
            if mirrored:
                image, boxes = image[:, ::-1], np.array([width, 0, width, 0]) - boxes * [1, -1, 1, -1]
                boxes = boxes[:, [2, 1, 0, 3]]
            flips.add(mirrored)
            padded = np.zeros_like(batch["image"][row])
            padded[:height, :width] = image
            np.testing.assert_array_equal(batch["image"][row], padded)
            valid = batch["valid"][row]
            assert valid.tolist() == [k < len(boxes) for k in range(4)]
            np.testing.assert_allclose(batch["boxes"][row][valid], boxes, rtol=1e-5)
            np.testing.assert_array_equal(batch["labels"][row][valid], objects.labels)
            np.testing.assert_array_equal(batch["crowd"][row][valid], objects.crowd)
            assert not batch["boxes"][row][~valid].any() and not batch["labels"][row][~valid].any()
    assert {16, 24} <= sides and flips == {False, True}


CROPS = SETTINGS.model_copy(
    update={"training_crop": ScaleJitter(shorter_side=(16, 24)), "crop_size": 16, "eval_short_side": 20}
)


def test_crops_hold_the_part_of_each_box_that_is_in_them():
    data = dataset(CROPS)
    assert data.image_shape == (16, 16, 3) and data.training_canvases == [(16, 16)]
    outside = 0
    for step, batch in enumerate(training(data, 4, 0, 12)):
        assert batch.keys() == KEYS and batch["image"].shape == (4, 16, 16, 3) and (batch["image_hw"] == 16).all()
        for row, index in enumerate(batch["index"]):
            source = data.photographs("train").source
            rng = np.random.default_rng((3, 4 * step + row))
            mirrored = (rng.integers(2), rng.random() < 0.5)[1]
            box = CROPS.training_crop.box(rng, *Source(1).size(int(index)), 16)
            pixels = crop_and_resize(source[int(index)]["image"], lambda *_, box=box: box, (16, 16), fast=True)
            np.testing.assert_array_equal(batch["image"][row], pixels[:, ::-1] if mirrored else pixels)
            objects = source.objects(int(index))
            for place, (annotated, label) in enumerate(zip(objects.boxes, objects.labels, strict=True)):
                # Of the pixels of the crop, sixteen times as fine, those whose centre the object covers.
                fine = (np.arange(256) + 0.5) / 256
                x, y = box[1] + fine * box[3], box[0] + fine * box[2]
                x = np.flatnonzero((x > annotated[0]) & (x < annotated[2]))
                y = np.flatnonzero((y > annotated[1]) & (y < annotated[3]))
                assert batch["labels"][row, place] == label
                if not len(x) or not len(y):
                    outside += 1
                    assert np.prod(np.diff(batch["boxes"][row, place].reshape(2, 2), axis=0)) < 0.02
                    continue
                expected = np.array([x[0], y[0], x[-1] + 1, y[-1] + 1]) / 16
                if mirrored:
                    expected = np.array([16 - expected[2], expected[1], 16 - expected[0], expected[3]])
                assert batch["valid"][row, place]
                np.testing.assert_allclose(batch["boxes"][row, place], expected, atol=0.07)
    assert outside  # Whose rows are there, and not valid, but for a sliver.
    assert_same(training(dataset(CROPS), 4, 9, 12), training(data, 4, 9, 12))


def test_the_central_crop_is_that_of_classification_with_the_boxes_in_it():
    data = dataset(CROPS)
    view = data.single_view("validation")
    batches = list(data.evaluation_batches("validation", view, 5, WHOLE))
    indices = np.concatenate([batch["index"] for batch in batches])
    assert sorted(indices[indices >= 0]) == list(range(13))
    for row, index in enumerate(batches[0]["index"]):
        height, width = Source(1).size(int(index))
        side = round(min(height, width) * 16 / 20)
        top, left = (height - side) // 2, (width - side) // 2
        expected = crop_and_resize(Source(1)[index]["image"], lambda *_, box=(top, left, side, side): box, (16, 16))
        np.testing.assert_array_equal(batches[0]["image"][row], expected)
        boxes = np.clip((Source(1).objects(index).boxes - [left, top, left, top]) * 16 / side, 0, 16)
        np.testing.assert_allclose(batches[0]["boxes"][row][: len(boxes)], boxes, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(batches[0]["scale"][row], 16 / side, rtol=1e-6)


def test_photographs_without_objects_or_with_crowds_alone_are_not_trained_on_unless_wanted():
    wanted = [i for i in range(23) if i % 4 and i % 8 != 1]
    data = dataset()
    assert data.num_train == len(wanted) and data.count("train") == 23
    seen = np.concatenate([batch["index"] for batch in training(data, 3, 0, 30)])
    assert set(seen.tolist()) == set(wanted)
    kept = dataset(SETTINGS.model_copy(update={"keep_empty": True}))
    assert kept.num_train == 23
    with pytest.raises(UserError, match=r"no photograph of train has an object"):
        training(dataset(train=1), 1, 0, 1)


def test_each_photograph_is_seen_once_a_pass_and_batches_hold_one_canvas():
    data = dataset()
    batches = training(data, 4, 0, 40)
    upright = [set((batch["index"] % 3 == 2).tolist()) for batch in batches]
    assert all(len(kinds) == 1 for kinds in upright) and {True} in upright and {False} in upright
    # 40 batches are ten passes: each photograph ten times, but for what its canvas still holds back.
    counts = Counter(np.concatenate([batch["index"] for batch in batches]).tolist())
    assert len(counts) == data.num_train and set(counts.values()) <= {
        160 // data.num_train + extra for extra in (-1, 0, 1)
    }


def test_batches_are_a_function_of_the_seed_and_the_step():
    data = dataset()
    batches = training(data, 4, 0, 14)
    assert_same(training(dataset(), 4, 9, 14), batches[9:])
    assert_same(training(data, 4, 13, 14), batches[13:])
    other = training(data, 4, 0, 14, seed=4)
    assert any(not np.array_equal(a["index"], b["index"]) for a, b in zip(batches, other, strict=True))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_make_equal_parts_of_the_batches(count):
    data = dataset()
    shares = [Share(index, count) for index in range(count)]
    assert_same(joined([training(data, 8, 2, 9, share) for share in shares]), training(data, 8, 2, 9))
    assert_same(joined([evaluation(data, 4, share) for share in shares]), evaluation(data, 4))


def test_a_process_reads_only_its_share(monkeypatch):
    read = []
    data = dataset()
    data.photographs("train")
    monkeypatch.setattr(
        Source, "__getitem__", lambda self, i, get=Source.__getitem__: (read.append(i), get(self, i))[1]
    )
    (part,) = training(data, 8, 0, 1, Share(1, 4))
    assert sorted(read) == sorted(part["index"].tolist()) and len(read) == 2


@pytest.mark.slow
def test_worker_processes_change_nothing():
    settings = SETTINGS.model_copy(update={"workers": 2})
    assert_same(training(dataset(settings), 8, 0, 3), training(dataset(), 8, 0, 3))


@pytest.mark.parametrize("batch_size", [1, 3, 5, 16])
def test_an_evaluation_sees_each_photograph_once(batch_size):
    data = dataset(val=13)
    batches = evaluation(data, batch_size)
    assert {len(batch["index"]) for batch in batches} == {batch_size}
    indices = np.concatenate([batch["index"] for batch in batches])
    assert sorted(indices[indices >= 0]) == list(range(13))
    for batch in batches:
        missing = batch["index"] < 0
        assert not batch["valid"][missing].any() and not batch["image"][missing].any()
        assert np.isfinite(batch["scale"]).all() and (batch["image_hw"] > 0).all()
        for row in np.flatnonzero(~missing):
            index, (height, width) = int(batch["index"][row]), batch["image_hw"][row]
            assert min(height, width) == 24 or max(height, width) == 32
            expected = crop_and_resize(Source(13)[index]["image"], whole_box, (int(height), int(width)))
            np.testing.assert_array_equal(batch["image"][row, :height, :width], expected)
            assert batch["valid"][row].sum() == len(Source(13).objects(index).labels)


def test_other_scales_have_other_canvases_with_the_longer_side_in_proportion():
    data = dataset()
    views = data.whole_views("validation", 12)
    assert [view.canvas for view in views] == [(16, 16), (16, 16)]
    assert sorted(np.concatenate([view.indices for view in views])) == list(range(13))
    assert views[0].look.resized(21, 32) == (10, 16)


def test_fifty_photographs_of_many_sizes_compile_two_programs():
    data = dataset(SETTINGS.model_copy(update={"short_sides": (12, 16, 20, 24)}), train=50)
    assert len(np.unique(data.photographs("train").sizes, axis=0)) >= 10
    step = jax.jit(lambda batch: batch["image"].sum() + batch["boxes"].sum())
    for batch in training(data, 4, 0, 30):
        step(batch)
    assert step._cache_size() == 2


def test_square_photographs_have_one_canvas():
    data = dataset(square=True)
    assert data.training_canvases == [(24, 24)] and len(data.whole_views("validation")) == 1
    assert {batch["image"].shape for batch in training(data, 4, 0, 8)} == {(4, 24, 24, 3)}


def test_photographs_that_cannot_be_decoded_are_named_and_others_take_their_places(capsys):
    data = dataset(SETTINGS.model_copy(update={"max_unreadable": 1}), broken=(6,))
    whole = dataset()
    broken, sound = training(data, 4, 0, 20), training(whole, 4, 0, 20)
    for batch, wanted in zip(broken, sound, strict=True):
        instead = wanted["index"] == 6
        assert not (batch["index"] == 6).any()
        np.testing.assert_array_equal(batch["index"][~instead], wanted["index"][~instead])
        assert (batch["index"][instead] == 7).all()  # The next that lies and holds an object.
    indices = np.concatenate([batch["index"] for batch in evaluation(data, 5)])
    assert sorted(indices[indices >= 0]) == [i for i in range(13) if i != 6]
    assert capsys.readouterr().err.count("warning: 6.jpg (") == 2
    with pytest.raises(UserError, match=r"max_unreadable 0"):
        training(dataset(SETTINGS.model_copy(update={"max_unreadable": 0}), broken=(6,)), 4, 0, 20)


class Odd(Source):
    """Boxes of no area, outside, and across the edge; each photograph is 21 x 26 pixels or so."""

    def objects(self, i):
        boxes = [[5, 5, 5, 9], [9, 9, 4, 12], [40, 2, 50, 9], [-3, 2, 8, 30], [1, 1, 5, 5]]
        return make_objects(boxes, [0, 0, 1, 1, 2])


def test_boxes_without_area_are_left_out_and_counted_and_others_clipped(capsys):
    opened = OpenedDetection({"train": Odd(4), "val": Odd(2)}.__getitem__, ["cat", "dog", "eel"], [0, 1, 2])
    data = DetectionDataset(opened, SETTINGS.model_copy(update={"max_boxes": 1}))
    (batch,) = training(data, 2, 0, 1)
    line = capsys.readouterr().err
    assert line == (
        "voc train: 4 photographs (0 without objects, 0 that cannot be decoded), 8 boxes, 12 without area left out, "
        "4 clipped to the photograph, 4 beyond data.max_boxes 1\n"
    )
    (height, width), (x1, y1, x2, y2) = batch["image_hw"][0], batch["boxes"][0, 0]
    assert 0 <= x1 < x2 <= width and 0 < y1 < y2 == height and batch["labels"].ravel().tolist() == [1, 1]
    truth = data.ground_truth("validation")
    assert len(truth) == 2 and [found.labels.tolist() for found in truth] == [[1, 2], [1, 2]]
    np.testing.assert_array_equal(truth[1].boxes, [[-3, 2, 8, 30], [1, 1, 5, 5]])  # As annotated.


def test_splits_are_joined_in_order_and_examples_keep_their_names():
    data = dataset(SETTINGS.model_copy(update={"validation": ("val", "more"), "test": ("more",)}))
    assert data.count("validation") == 18 and data.count("test") == 5
    assert data.example_name("validation", 14) == "1.jpg" and data.image_id("validation", 14) == 1001
    assert len(data.ground_truth("validation")[16].labels) == 3
    assert (data.evaluation_split, data.test_split) == ("validation", "test")
    only = dataset(SETTINGS.model_copy(update={"validation": (), "test": ("more",)}))
    assert (only.evaluation_split, only.test_split) == ("test", "test")
    with pytest.raises(UserError, match=r"has no split 'validation'; use train or test, or set config.data.validation"):
        only.count("validation")
    with pytest.raises(IndexError):
        data.photographs("validation").source[18]


def test_what_detection_lacks_is_said():
    data = dataset()
    for method in (data.mean_image, lambda: data.single_view("validation"), lambda: data.square_view("validation")):
        with pytest.raises(UserError):
            method()
    assert data.resident("train") is None and len(data.channel_statistics()[0]) == 3


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"max_side": 20}, "max_side 20 is below a shorter side, 24"),
        ({"eval_short_side": 40}, "max_side 32 is below a shorter side, 40"),
        ({"validation": ()}, "no split to evaluate on"),
        ({"short_sides": ()}, "at least 1 item"),
        ({"flip": 1.5}, "less than or equal to 1"),
        ({"training_crop": ScaleJitter(), "crop_size": 32}, "crop_size 32 is above the shorter side in evaluation, 24"),
        ({"training_crop": ScaleJitter(shorter_side=(8, 9)), "crop_size": 16}, "begins below crop_size 16"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, error):
    with pytest.raises(ValidationError, match=re.escape(error)):
        DetectionData(**{**SETTINGS.model_dump(), **changes})
