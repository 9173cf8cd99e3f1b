from functools import partial

import pytest

from resnet_jax.data.decode.boxes import center_box, central_square_box, whole_box

SIZES = [(1, 1), (1, 500), (500, 1), (3, 4), (375, 500), (500, 375), (300, 5000), (5000, 300)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("choose", [partial(center_box, shorter_side=256, crop=224), central_square_box, whole_box])
def test_fixed_boxes_are_inside_and_central(choose, height, width):
    top, left, box_height, box_width = box = choose(height, width)
    assert all(type(value) is int for value in box)
    assert min(top, left) >= 0 and min(box_height, box_width) >= 1
    assert 0 <= height - box_height - 2 * top <= 1
    assert 0 <= width - box_width - 2 * left <= 1


def test_center_box_is_the_crop_of_the_resized_image():
    assert center_box(256, 256, 256, 224) == (16, 16, 224, 224)
    assert center_box(512, 1024, 256, 224) == (32, 288, 448, 448)
    assert center_box(1024, 512, 256, 256) == (256, 0, 512, 512)
    assert center_box(30, 20, 256, 224) == (6, 1, 18, 18)


def test_whole_and_central_square():
    assert whole_box(3, 7) == (0, 0, 3, 7)
    assert central_square_box(3, 7) == (0, 2, 3, 3)
    assert central_square_box(7, 3) == (2, 0, 3, 3)
