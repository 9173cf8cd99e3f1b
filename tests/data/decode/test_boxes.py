import pytest

from resnet_jax.data.decode.boxes import CentralCrop, whole_box

SIZES = [(1, 1), (1, 500), (500, 1), (3, 4), (375, 500), (500, 375), (300, 5000), (5000, 300)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("choose", [CentralCrop(256, 224).box, CentralCrop(256, 256).box, whole_box])
def test_fixed_boxes_are_inside_and_central(choose, height, width):
    top, left, box_height, box_width = box = choose(height, width)
    assert all(type(value) is int for value in box)
    assert min(top, left) >= 0 and min(box_height, box_width) >= 1
    assert 0 <= height - box_height - 2 * top <= 1
    assert 0 <= width - box_width - 2 * left <= 1


def test_a_central_crop_is_that_of_the_resized_image():
    assert CentralCrop(256, 224).box(256, 256) == (16, 16, 224, 224)
    assert CentralCrop(256, 224).box(512, 1024) == (32, 288, 448, 448)
    assert CentralCrop(256, 256).box(1024, 512) == (256, 0, 512, 512)
    assert CentralCrop(256, 224).box(30, 20) == (6, 1, 18, 18)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_filtered_crop_is_within_a_pixel_of_the_same(height, width):
    whole, parts = (CentralCrop(235, 224, how).box(height, width) for how in ("area", "bicubic"))
    pixel = max(1, min(height, width) / 235)  # Of the image, or of the resized one.
    assert parts == pytest.approx(whole, abs=2 * pixel)
    assert min(parts[:2]) >= 0
    assert parts[0] + parts[2] <= height * (1 + 1e-9) and parts[1] + parts[3] <= width * (1 + 1e-9)


def test_a_filtered_crop_is_torchvisions():
    # Resized to 235 x 313.33, cut off to 313, and the crop's corner at (5.5, 44.5), rounded half to even.
    top, left, height, width = CentralCrop(235, 224, "bilinear").box(375, 500)
    assert (top, left) == pytest.approx((6 * 375 / 235, 44 * 500 / 313))
    assert (height, width) == pytest.approx((224 * 375 / 235, 224 * 500 / 313))


def test_the_whole_image_and_the_central_square():
    assert whole_box(3, 7) == (0, 0, 3, 7)
    assert CentralCrop(9, 9).box(3, 7) == (0, 2, 3, 3)
    assert CentralCrop(9, 9).box(7, 3) == (2, 0, 3, 3)
