"""Boxes resized by Pillow's bilinear and bicubic filters."""

import numpy as np
import PIL.Image
import pytest

from resnet_jax.data.decode.boxes import CentralCrop
from resnet_jax.data.decode.images import crop_and_resize
from tests.data.decode.encoded_images import HEIGHT, NOISE, WIDTH, encoded, reference_pixels

# pytest forgets between tests the filter that the module sets.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")

FILTERS = {"bilinear": PIL.Image.Resampling.BILINEAR, "bicubic": PIL.Image.Resampling.BICUBIC}


def resized_whole(data, shorter_side, crop, interpolation):
    """As torchvision's Resize and CenterCrop do it with Pillow: the whole image first."""
    image = PIL.Image.fromarray(reference_pixels(data).astype(np.uint8))
    width, height = (int(shorter_side * side / min(image.size)) for side in image.size)
    top, left = round((height - crop) / 2), round((width - crop) / 2)
    return np.asarray(image.resize((width, height), FILTERS[interpolation]))[top : top + crop, left : left + crop]


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", [(300, 407), (407, 300), (64, 61), (33, 150), (20, 30)])
@pytest.mark.parametrize(("shorter_side", "crop"), [(64, 56), (47, 32), (48, 48)])
def test_filtered_crops_equal_those_of_the_whole_resized_image(decoder, interpolation, size, shorter_side, crop):
    pixels = np.random.default_rng(0).integers(256, size=(*size, 3), dtype=np.uint8)
    view = CentralCrop(shorter_side, crop, interpolation)
    for image in (encoded(pixels, quality=95), encoded(pixels, "PNG")):
        found = crop_and_resize(image, view.box, (crop, crop), interpolation=interpolation).astype(int)
        wanted = resized_whole(image, shorter_side, crop, interpolation)
        # Pillow keeps the box in float32.
        assert np.abs(found - wanted).max() <= 1 and (found != wanted).mean() < 0.02


@pytest.mark.parametrize("interpolation", FILTERS)
def test_filtered_training_crops_see_their_box_alone(interpolation):
    box, inside = (10, 20, 60, 90), np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    outside = np.full_like(inside, 255)
    outside[10:70, 20:110] = 0
    found = crop_and_resize(outside, lambda *_: box, (30, 45), fast=True, interpolation=interpolation)
    assert not found.any()
    seen = crop_and_resize(outside, lambda *_: box, (30, 45), interpolation=interpolation)
    assert seen[0].any() and seen[:, 0].any() and not seen[2:-2, 2:-2].any()
    out = np.empty((30, 45, 3), np.uint8)
    cut = PIL.Image.fromarray(NOISE[10:70, 20:110]).resize((45, 30), FILTERS[interpolation])
    crop_and_resize(NOISE, lambda *_: box, (30, 45), True, out, interpolation)
    np.testing.assert_array_equal(out, cut)


def test_a_filtered_box_outside_of_the_image_is_refused():
    for box in ((0, 0, HEIGHT + 0.5, 10), (-0.1, 0, 10, 10), (0, 0, 10, 0.0)):
        with pytest.raises(ValueError, match="is not inside an image of 90 x 130 pixels"):
            crop_and_resize(NOISE, lambda *_, box=box: box, (5, 5), interpolation="bicubic")
