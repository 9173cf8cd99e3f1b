from collections import Counter
from functools import partial

import numpy as np
import pytest

from resnet_jax.data import crops

SIZES = [(1, 1), (1, 500), (500, 1), (3, 4), (375, 500), (500, 375), (300, 5000), (5000, 300)]
NUM_DRAWS = 300


def assert_inside(box, height, width):
    top, left, box_height, box_width = box
    assert all(type(value) is int for value in box)
    assert min(top, left) >= 0 and min(box_height, box_width) >= 1
    assert top + box_height <= height and left + box_width <= width


def assert_about_uniform(values, low, high, bins=10):
    """Each of equal bins has its share of the values: within five standard deviations of a binomial count."""
    counts, _ = np.histogram(values, bins, (low, high))
    assert counts.sum() == len(values)
    assert np.abs(counts - len(values) / bins).max() < 5 * np.sqrt(len(values) / bins * (1 - 1 / bins))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(
    "choose",
    [
        partial(crops.scale_jitter_box, shorter_side=(256, 480), crop=224),
        partial(crops.scale_jitter_box, shorter_side=(224, 224), crop=224),
        crops.random_resized_box,
        partial(crops.random_resized_box, area=(1.0, 1.0)),
        partial(crops.random_resized_box, aspect=(2.0, 3.0)),
        partial(crops.random_resized_box, aspect=(0.2, 0.5)),
    ],
)
def test_random_boxes_are_inside_and_follow_the_generator(choose, height, width):
    boxes = [choose(np.random.default_rng(seed), height, width) for seed in range(NUM_DRAWS)]
    for box in boxes:
        assert_inside(box, height, width)
    assert boxes == [choose(np.random.default_rng(seed), height, width) for seed in range(NUM_DRAWS)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(
    "choose", [partial(crops.center_box, shorter_side=256, crop=224), crops.central_square_box, crops.whole_box]
)
def test_fixed_boxes_are_inside_and_central(choose, height, width):
    top, left, box_height, box_width = box = choose(height, width)
    assert_inside(box, height, width)
    assert 0 <= height - box_height - 2 * top <= 1
    assert 0 <= width - box_width - 2 * left <= 1


def test_scale_jitter_draws_each_shorter_side_equally_often():
    rng = np.random.default_rng(0)
    # So large that every shorter side has a square of its own.
    height, width, low, high, crop = 10**6, 2 * 10**6, 5, 12, 4
    shorter_side_of = {round(height * crop / side): side for side in range(low, high + 1)}
    boxes = [crops.scale_jitter_box(rng, height, width, (low, high), crop) for _ in range(4000)]
    assert all(box_height == box_width for _, _, box_height, box_width in boxes)
    counts = Counter(shorter_side_of[side] for _, _, side, _ in boxes)
    assert set(counts) == set(range(low, high + 1))
    expected = 4000 / len(counts)
    assert all(abs(count - expected) < 5 * np.sqrt(expected) for count in counts.values())


@pytest.mark.parametrize(
    "choose",
    [
        partial(crops.scale_jitter_box, shorter_side=(256, 480), crop=224),
        partial(crops.random_resized_box, area=(0.08, 0.5)),
    ],
)
def test_random_boxes_are_placed_uniformly(choose):
    rng = np.random.default_rng(1)
    height, width = 3000, 5000
    boxes = np.array([choose(rng, height, width) for _ in range(4000)])
    room = np.array([height, width]) - boxes[:, 2:]
    # The middle of each position's share, so that the values are uniform on (0, 1).
    places = (boxes[:, :2] + 0.5) / (room + 1)
    assert_about_uniform(places[:, 0], 0, 1)
    assert_about_uniform(places[:, 1], 0, 1)
    assert abs(np.corrcoef(places.T)[0, 1]) < 5 / np.sqrt(len(boxes))


def test_small_images_reach_every_position():
    rng = np.random.default_rng(2)
    corners = Counter(crops.scale_jitter_box(rng, 4, 5, (4, 4), 3)[:2] for _ in range(NUM_DRAWS))
    assert set(corners) == {(top, left) for top in range(2) for left in range(3)}


def test_random_resized_area_is_uniform_and_aspect_log_uniform():
    rng = np.random.default_rng(3)
    side, area, aspect = 100_000, (0.02, 0.3), (1 / 3, 3)
    # With this area every draw fits, so the boxes have the distribution of the draws.
    boxes = np.array([crops.random_resized_box(rng, side, side, area, aspect) for _ in range(4000)], np.float64)
    shares = boxes[:, 2] * boxes[:, 3] / side**2
    ratios = np.log(boxes[:, 3] / boxes[:, 2])
    assert_about_uniform(shares, area[0] - 1e-4, area[1] + 1e-4)
    assert_about_uniform(ratios, np.log(aspect[0]) - 1e-4, np.log(aspect[1]) + 1e-4)
    assert abs(np.corrcoef(shares, ratios)[0, 1]) < 5 / np.sqrt(len(boxes))


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (500, 500)])
def test_random_resized_keeps_the_ranges_on_ordinary_photographs(height, width):
    rng = np.random.default_rng(4)
    boxes = np.array([crops.random_resized_box(rng, height, width) for _ in range(2000)], np.float64)
    shares = boxes[:, 2] * boxes[:, 3] / (height * width)
    ratios = boxes[:, 3] / boxes[:, 2]
    # Sides are rounded to whole pixels, of which the smallest box has about a hundred.
    assert 0.079 < shares.min() < 0.1 and 0.9 < shares.max() <= 1
    assert 0.74 < ratios.min() < 0.77 and 1.3 < ratios.max() < 1.35


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (100, 1000, (0, 433, 100, 133)),  # Too wide: the height, and 4/3 of it.
        (1000, 100, (433, 0, 133, 100)),
        (1, 1000, (0, 499, 1, 1)),
        (120, 150, (0, 0, 120, 150)),  # Within the aspects: all of it.
        (1, 1, (0, 0, 1, 1)),
    ],
)
def test_random_resized_falls_back_to_the_centre_when_no_draw_fits(height, width, expected):
    # Boxes of three times the image's area never fit.
    box = crops.random_resized_box(np.random.default_rng(5), height, width, area=(3.0, 3.0))
    assert box == expected


def test_center_box_is_the_crop_of_the_resized_image():
    assert crops.center_box(256, 256, 256, 224) == (16, 16, 224, 224)
    assert crops.center_box(512, 1024, 256, 224) == (32, 288, 448, 448)
    assert crops.center_box(1024, 512, 256, 256) == (256, 0, 512, 512)
    assert crops.center_box(30, 20, 256, 224) == (6, 1, 18, 18)


def test_whole_and_central_square():
    assert crops.whole_box(3, 7) == (0, 0, 3, 7)
    assert crops.central_square_box(3, 7) == (0, 2, 3, 3)
    assert crops.central_square_box(7, 3) == (2, 0, 3, 3)


def test_a_crop_larger_than_the_resized_image_is_refused():
    with pytest.raises(ValueError, match="high <= 0"):
        crops.scale_jitter_box(np.random.default_rng(6), 100, 100, (200, 200), 224)
