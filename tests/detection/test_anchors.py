import numpy as np
import pytest

from resnet_jax.detection.anchors import Anchors, cell_anchors, grid_anchors, legacy_anchors
from resnet_jax.errors import UserError

# The windows printed in the released generate_anchors.m and .py, whose pixels begin at 1.
PUBLISHED = [
    [-83, -39, 100, 56],
    [-175, -87, 192, 104],
    [-359, -183, 376, 200],
    [-55, -55, 72, 72],
    [-119, -119, 136, 136],
    [-247, -247, 264, 264],
    [-35, -79, 52, 96],
    [-79, -167, 96, 184],
    [-167, -343, 184, 360],
]


def test_the_nine_legacy_anchors_are_the_published_windows():
    np.testing.assert_array_equal(legacy_anchors(), np.array(PUBLISHED) - 1)
    np.testing.assert_array_equal(Anchors(((128.0, 256.0, 512.0),), style="legacy").cells(0), np.array(PUBLISHED) - 1)


def test_cells_have_the_area_and_ratio_asked_for():
    cells = cell_anchors((32.0, 64.0), (0.5, 1.0, 2.0))
    widths, heights = cells[:, 2] - cells[:, 0], cells[:, 3] - cells[:, 1]
    np.testing.assert_allclose(widths * heights, [32**2, 64**2] * 3, rtol=1e-5)
    np.testing.assert_allclose(heights / widths, [0.5, 0.5, 1, 1, 2, 2], rtol=1e-5)
    np.testing.assert_allclose(cells[:, :2], -cells[:, 2:])


def test_the_grid_goes_row_by_row_and_anchor_by_anchor():
    cells = np.array([[-1.0, -2, 1, 2], [-3, -4, 3, 4]])
    grid = grid_anchors((2, 3), 16, cells)
    expected = [np.add(cell, [16 * x, 16 * y] * 2) for y in range(2) for x in range(3) for cell in cells]
    np.testing.assert_array_equal(grid, expected)


@pytest.mark.extensive
def test_torchvisions_anchors(golden):
    anchors = Anchors(((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)), style="rounded", fitted=True)
    maps = [(32, 40), (16, 20), (8, 10), (4, 5), (2, 3)]
    boxes = np.concatenate(anchors.on((128, 160), maps, (4, 8, 16, 32, 64)))
    np.testing.assert_array_equal(boxes, golden["anchors"])


def test_without_fitting_anchors_lie_a_stride_apart():
    boxes = Anchors(((32.0,),), (1.0,)).on((600, 1000), [(38, 63)], (16,))[0]
    assert boxes.shape == (38 * 63, 4)
    np.testing.assert_array_equal(boxes[-1], [62 * 16 - 16, 37 * 16 - 16, 62 * 16 + 16, 37 * 16 + 16])


@pytest.mark.parametrize("style", ["exact", "rounded", "legacy"])
def test_anchors_at_each_position(style):
    anchors = Anchors(((64.0, 128.0),), (0.5, 1.0, 2.0), style)
    assert anchors.per_position == len(anchors.cells(0)) == 6
    assert hash(anchors) == hash(Anchors(((64.0, 128.0),), (0.5, 1.0, 2.0), style))


def test_sizes_that_are_not_those_of_the_maps_are_named():
    for sizes in ((16.0, 32.0), (), ((), ()), ((8.0,), (64.0, 128.0))):
        with pytest.raises(UserError, match=r"give a tuple for each map, as in .*, each as long"):
            Anchors(sizes).per_position  # noqa: B018
    with pytest.raises(UserError, match=r"style is 'legasy'; it must be 'exact' or 'rounded' or 'legacy'"):
        Anchors(((16.0,),), style="legasy").cells(0)
    with pytest.raises(ValueError, match=r"sizes for 1 maps, and the backbone has 2"):
        Anchors(((16.0,),)).on((64, 64), [(8, 8), (4, 4)], (8, 16))
