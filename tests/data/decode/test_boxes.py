import pytest

from resnet_jax.data.decode.boxes import CentralCrop, Whole, whole_box

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
def test_a_whole_image_is_resized_to_its_shorter_side(photograph, shorter_side, expected):
    assert Whole(shorter_side).resized(*photograph) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((375, 500), (600, 800)),
        ((500, 375), (800, 600)),
        ((300, 600), (500, 1000)),
        ((1, 900), (1, 1000)),
        ((600, 600), (600, 600)),
    ],
)
def test_the_shorter_side_is_600_and_the_longer_at_most_1000(size, expected):
    assert Whole(600, 1000).resized(*size) == expected


def test_at_another_side_the_limit_is_in_proportion():
    assert Whole(600, 1000, "bicubic").at(300) == Whole(300, 500, "bicubic")
    assert Whole(256).at(640) == Whole(640)
    assert Whole(256).box(30, 40) == (0, 0, 30, 40)
