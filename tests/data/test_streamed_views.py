"""What evaluation sees of photographs: boxes, their sizes, and the canvases that hold them."""

import math

import numpy as np
import PIL.Image
import pytest

from resnet_jax.data.crops import RandomResized
from resnet_jax.data.dataset import Share
from resnet_jax.data.decode.boxes import Whole, whole_box
from resnet_jax.data.decode.images import crop_and_resize
from resnet_jax.data.order import example_indices
from resnet_jax.data.pack import write_pack
from resnet_jax.data.streamed import ASPECTS, canvas_for
from resnet_jax.errors import UserError
from tests.data.streamed_photographs import CROP, dataset, photographs, settings

SCALES = (224, 256, 384, 480, 640)


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
        resized = Whole(scale).resized(height, width)
        assert canvas[0] >= resized[0] and canvas[1] >= resized[1]
        assert canvas[0] % 32 == canvas[1] % 32 == 0
        assert canvas_for(width, height, scale) == canvas[::-1]
        assert min(canvas) < scale + 32
        canvases.add(canvas)
    assert len(canvases) <= most_canvases(sizes)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [(500, 500), (375, 500), (500, 333), (480, 640), (1200, 800)])
def test_usual_photographs_leave_little_of_their_canvas_empty(size, scale):
    canvas, resized = canvas_for(*size, scale), Whole(scale).resized(*size)
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
                assert view.look.box(*sizes[i]) == (0, 0, *sizes[i])
                assert view.look.resized(*sizes[i]) == Whole(scale).resized(*sizes[i])
                assert (np.array(view.look.resized(*sizes[i])) <= view.canvas).all()
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
