import pickle
from collections import Counter
from functools import partial

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from resnet_jax.data.crops import Crop, RandomResized, ScaleJitter

SIZES = [(1, 1), (1, 500), (500, 1), (3, 4), (375, 500), (500, 375), (300, 5000), (5000, 300)]
NUM_DRAWS = 300


def assert_about_uniform(values, low, high, bins=10):
    """Each of equal bins has its share of the values: within five standard deviations of a binomial count."""
    counts, _ = np.histogram(values, bins, (low, high))
    assert counts.sum() == len(values)
    assert np.abs(counts - len(values) / bins).max() < 5 * np.sqrt(len(values) / bins * (1 - 1 / bins))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(
    "crop",
    [ScaleJitter(), ScaleJitter(shorter_side=(224, 224)), RandomResized(), RandomResized(area=(1.0, 1.0))],
)
def test_random_boxes_are_inside_and_follow_the_generator(crop, height, width):
    boxes = [crop.box(np.random.default_rng(seed), height, width, 224) for seed in range(NUM_DRAWS)]
    for box in boxes:
        top, left, box_height, box_width = box
        assert all(type(value) is int for value in box)
        assert min(top, left) >= 0 and min(box_height, box_width) >= 1
        assert top + box_height <= height and left + box_width <= width
    assert boxes == [crop.box(np.random.default_rng(seed), height, width, 224) for seed in range(NUM_DRAWS)]


def test_scale_jitter_draws_each_shorter_side_equally_often():
    rng = np.random.default_rng(0)
    # So large that every shorter side has a square of its own.
    height, width, low, high, crop = 10**6, 2 * 10**6, 5, 12, 4
    shorter_side_of = {round(height * crop / side): side for side in range(low, high + 1)}
    boxes = [ScaleJitter(shorter_side=(low, high)).box(rng, height, width, crop) for _ in range(4000)]
    assert all(box_height == box_width for _, _, box_height, box_width in boxes)
    counts = Counter(shorter_side_of[side] for _, _, side, _ in boxes)
    assert set(counts) == set(range(low, high + 1))
    expected = 4000 / len(counts)
    assert all(abs(count - expected) < 5 * np.sqrt(expected) for count in counts.values())


@pytest.mark.parametrize("crop", [ScaleJitter(), RandomResized(area=(0.08, 0.5))])
def test_random_boxes_are_placed_uniformly(crop):
    rng = np.random.default_rng(1)
    height, width = 3000, 5000
    boxes = np.array([crop.box(rng, height, width, 224) for _ in range(4000)])
    room = np.array([height, width]) - boxes[:, 2:]
    # The middle of each position's share, so that the values are uniform on (0, 1).
    places = (boxes[:, :2] + 0.5) / (room + 1)
    assert_about_uniform(places[:, 0], 0, 1)
    assert_about_uniform(places[:, 1], 0, 1)
    assert abs(np.corrcoef(places.T)[0, 1]) < 5 / np.sqrt(len(boxes))


def test_small_images_reach_every_position():
    rng = np.random.default_rng(2)
    corners = Counter(ScaleJitter(shorter_side=(4, 4)).box(rng, 4, 5, 3)[:2] for _ in range(NUM_DRAWS))
    assert set(corners) == {(top, left) for top in range(2) for left in range(3)}


def test_random_resized_area_is_uniform_and_aspect_log_uniform():
    rng = np.random.default_rng(3)
    side, area = 100_000, (0.02, 0.3)
    # With this area every draw fits, so the boxes have the distribution of the draws.
    boxes = np.array([RandomResized(area=area).box(rng, side, side, 224) for _ in range(4000)], np.float64)
    shares = boxes[:, 2] * boxes[:, 3] / side**2
    ratios = np.log(boxes[:, 3] / boxes[:, 2])
    assert_about_uniform(shares, area[0] - 1e-4, area[1] + 1e-4)
    assert_about_uniform(ratios, np.log(3 / 4) - 1e-4, np.log(4 / 3) + 1e-4)
    assert abs(np.corrcoef(shares, ratios)[0, 1]) < 5 / np.sqrt(len(boxes))


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (500, 500)])
def test_random_resized_keeps_the_ranges_on_ordinary_photographs(height, width):
    rng = np.random.default_rng(4)
    boxes = np.array([RandomResized().box(rng, height, width, 224) for _ in range(2000)], np.float64)
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
    # Boxes of three times the image's area never fit; as a setting it is refused.
    crop = RandomResized.model_construct(area=(3.0, 3.0))
    assert crop.box(np.random.default_rng(5), height, width, 224) == expected


def test_the_draws_are_pinned():
    """What a seed gives must not change: a run would not go on with the crops that it began with."""
    boxes = [crop.box(np.random.default_rng(7), 375, 500, 224) for crop in (ScaleJitter(), RandomResized())]
    assert boxes == [(123, 220, 179, 179), (36, 83, 313, 393)]


@pytest.mark.parametrize(
    "setting",
    [
        {"name": "corner"},
        {"name": "scale_jitter", "shorter_side": (300, 256)},
        {"name": "scale_jitter", "shorter_side": (0, 256)},
        {"name": "scale_jitter", "area": (0.1, 1.0)},
        {"name": "random_resized", "area": (0.0, 1.0)},
        {"name": "random_resized", "area": (0.5, 0.1)},
        {"name": "random_resized", "area": (0.5, 1.5)},
    ],
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValidationError):
        TypeAdapter(Crop).validate_python(setting)


def test_a_jitter_that_begins_below_the_crop_is_refused():
    with pytest.raises(ValueError, match=r"crop\.shorter_side \(200, 300\) begins below crop_size 224"):
        ScaleJitter(shorter_side=(200, 300)).check(224)
    ScaleJitter(shorter_side=(224, 300)).check(224)
    RandomResized().check(10_000)


@pytest.mark.parametrize("crop", [ScaleJitter(shorter_side=(12, 20)), RandomResized(area=(0.2, 0.3))])
def test_a_crop_goes_to_worker_processes(crop):
    copy = pickle.loads(pickle.dumps(partial(crop.box, crop_size=10)))
    draws = [box(np.random.default_rng(0), 40, 30) for box in (copy, partial(crop.box, crop_size=10))]
    assert draws[0] == draws[1]
