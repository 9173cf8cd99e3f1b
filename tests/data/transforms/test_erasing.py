"""Random erasing and cutout: the rectangles and what is in them."""

import jax
import numpy as np
import pydantic
import pytest
import scipy.stats

from resnet_jax.data.normalization import Normalization
from resnet_jax.data.transforms import Cutout, RandomErasing

COUNT = 4000
NONE = Normalization(np.zeros(3, np.float32), np.ones(3, np.float32))


def erased(transform, seed, count=COUNT, height=20, width=30):
    """The images after the transform, which were 5 everywhere."""
    images = np.full((count, height, width, 3), 5, np.float32)
    run = jax.jit(lambda key: transform(key, {"image": images}, NONE, 10)["image"])
    return np.asarray(run(jax.random.key(seed)))


def rectangle(mask):
    """Top, left, bottom, right of a mask (H, W), all of whose rectangle must be set."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left, bottom, right = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    assert mask[top:bottom, left:right].all() and mask.sum() == (bottom - top) * (right - left)
    return top, left, bottom, right


@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_random_erasing_has_its_probability(probability):
    changed = (erased(RandomErasing(probability=probability), 0) != 5).any(axis=(1, 2, 3)).mean()
    assert abs(changed - probability) <= 5 * np.sqrt(probability * (1 - probability) / COUNT)


def test_rectangles_are_within_the_range_of_areas_and_aspects():
    settings = RandomErasing(probability=1.0, area=(0.05, 0.25), aspect=(0.5, 2.0))
    images = erased(settings, 1, height=100, width=150, count=400)
    boxes = np.array([rectangle(image[..., 0] != 5) for image in images])
    heights, widths = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    shares, aspects = heights * widths / 15_000, np.log(heights / widths)
    # Nothing of this size fails to fit, and sides are rounded to a pixel in about fifty.
    assert scipy.stats.kstest(shares, "uniform", (0.05, 0.2)).pvalue > 1e-4
    assert scipy.stats.kstest(aspects, "uniform", (-np.log(2), 2 * np.log(2))).pvalue > 1e-4
    # Corners are uniform where the rectangle fits, both ends included.
    places = (boxes[:, 0] + 0.5) / (100 - heights + 1), (boxes[:, 1] + 0.5) / (150 - widths + 1)
    for place in places:
        assert scipy.stats.kstest(place, "uniform").pvalue > 1e-4


def test_a_rectangle_that_does_not_fit_is_drawn_again_and_ten_times_at_most():
    """Half of the image at an aspect of 8 to 1 fits a 20 x 30 image lying or standing never."""
    assert (erased(RandomErasing(probability=1.0, area=(0.5, 0.5), aspect=(8.0, 8.0)), 2, count=50) == 5).all()
    settings = RandomErasing(probability=1.0, area=(0.5, 0.5), aspect=(0.125, 8.0))
    images = erased(settings, 3)
    assert (images != 5).any(axis=(1, 2, 3)).mean() > 0.95
    for image in images[:50]:
        if (image != 5).any():
            top, left, bottom, right = rectangle(image[..., 0] != 5)
            assert bottom - top < 20 and right - left < 30


@pytest.mark.parametrize("fill", ["constant", "color", "pixel"])
@pytest.mark.extensive
def test_what_is_filled_in_is_the_mean_a_color_or_noise(fill):
    images = erased(RandomErasing(probability=1.0, fill=fill), 4, count=600)
    values = []
    for image in images:
        top, left, bottom, right = rectangle(image[..., 0] != 5)
        inside = image[top:bottom, left:right].reshape(-1, 3)
        if fill == "constant":
            assert (inside == 0).all()
        elif fill == "color":
            assert (inside == inside[0]).all()
            values.append(inside[0])
        else:
            assert len(np.unique(inside)) > 0.95 * inside.size  # Draws in float32 may be equal.
            values.append(inside.ravel()[:3])
    if values:
        assert scipy.stats.kstest(np.ravel(values), "norm").pvalue > 1e-4


@pytest.mark.parametrize("size", [4, 7])
def test_cutout_is_a_square_around_any_pixel_cut_at_the_edges(size):
    images = erased(Cutout(size=size), 5, height=10, width=12)
    expected = {}
    for y in range(10):
        for x in range(12):
            mask = np.zeros((10, 12), bool)
            top, left = y - size // 2, x - size // 2
            mask[max(0, top) : top + size, max(0, left) : left + size] = True
            expected[mask.tobytes()] = expected.get(mask.tobytes(), 0) + 1
    found = {}
    for image in images:
        assert set(np.unique(image)) <= {0, 5}
        key = (image[..., 0] == 0).tobytes()
        found[key] = found.get(key, 0) + 1
    assert set(found) == set(expected)
    counts = np.array([[found[key], COUNT * ways / 120] for key, ways in expected.items()])
    assert scipy.stats.chisquare(counts[:, 0], counts[:, 1]).pvalue > 1e-4


@pytest.mark.parametrize(
    "values", [{"probability": 1.1}, {"area": (0.5, 0.2)}, {"area": (0.0, 0.2)}, {"aspect": (0.0, 1.0)}], ids=str
)
def test_a_value_out_of_range_is_refused(values):
    with pytest.raises(pydantic.ValidationError):
        RandomErasing(**values)
