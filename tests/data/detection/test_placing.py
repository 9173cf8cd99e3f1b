import numpy as np

from resnet_jax.data.decode.boxes import Whole
from resnet_jax.data.detection.placing import (
    canvas_groups,
    original_boxes,
    place_objects,
    scale_of,
    seen_in,
)
from resnet_jax.data.sources.detection.protocol import make_objects


def test_canvases_are_the_smallest_in_multiples_of_the_stride():
    sizes = np.array([[375, 500], [500, 375], [480, 640], [400, 400], [333, 500]])
    groups, canvases = canvas_groups(sizes, Whole(600, 1000), 16)
    assert groups.tolist() == [0, 1, 0, 0, 0] and canvases == [(608, 912), (800, 608)]
    groups, canvases = canvas_groups(np.array([[100, 400], [400, 100]]), Whole(600, 1000), 16)
    assert canvases == [(256, 1008), (1008, 256)]
    for only, canvas in (([[300, 300]] * 3, (608, 608)), ([[400, 300]], (800, 608)), ([[300, 400]], (608, 800))):
        groups, canvases = canvas_groups(np.array(only), Whole(600, 1000), 32)
        assert groups.tolist() == [0] * len(only) and canvases == [canvas]


def test_boxes_are_clipped_resized_and_mirrored():
    objects = make_objects([[-4, 5, 10, 60], [0, 0, 100, 50]], [2, 1], difficult=[False, True])
    placed = place_objects(objects, (50, 100), (100, 199), False, 4)
    np.testing.assert_allclose(placed["boxes"], [[0, 10, 19.9, 100], [0, 0, 199, 100], [0] * 4, [0] * 4], rtol=1e-6)
    assert placed["labels"].tolist() == [2, 1, 0, 0] and placed["difficult"].tolist() == [False, True, False, False]
    assert placed["valid"].tolist() == [True, True, False, False]
    assert placed["boxes"].dtype == np.float32 and placed["labels"].dtype == np.int32
    mirrored = place_objects(objects, (50, 100), (100, 199), True, 4)
    np.testing.assert_allclose(mirrored["boxes"][:2], [[179.1, 10, 199, 100], [0, 0, 199, 100]], rtol=1e-6)


def test_mirroring_boxes_is_mirroring_pixels():
    rng = np.random.default_rng(0)
    corner, side = rng.integers(0, 20, (5, 2)), rng.integers(1, 12, (5, 2))
    boxes = np.concatenate([corner, corner + side], axis=1)
    mirrored = place_objects(make_objects(boxes, [0] * 5), (32, 32), (32, 32), True, 5)["boxes"].astype(int)
    for (x1, y1, x2, y2), (left, top, right, lower) in zip(boxes, mirrored, strict=True):
        image = np.zeros((32, 32), bool)
        image[y1:y2, x1:x2] = True
        expected = np.zeros((32, 32), bool)
        expected[top:lower, left:right] = True
        np.testing.assert_array_equal(image[:, ::-1], expected)


def test_crowds_are_the_first_to_be_left_out():
    objects = make_objects(np.tile([0, 0, 5, 5], (4, 1)), [1, 2, 3, 4], crowd=[True, False, False, True])
    placed = place_objects(objects, (9, 9), (9, 9), False, 3)
    assert placed["labels"].tolist() == [2, 3, 1] and placed["crowd"].tolist() == [False, False, True]


def test_boxes_find_their_way_back():
    size, resized = (333, 500), Whole(600, 1000).resized(333, 500)
    objects = make_objects([[10, 20, 300, 333]], [0])
    placed = place_objects(objects, size, resized, False, 2)
    back = original_boxes(placed["boxes"][None], scale_of(size, resized)[None])
    np.testing.assert_allclose(back[0, 0], [10, 20, 300, 333], rtol=1e-6)


def test_objects_of_a_crop_are_those_with_an_area_in_it_and_the_others_keep_their_class():
    objects = make_objects([[10, 10, 30, 40], [0, 0, 20, 25], [60, 5, 70, 15]], [1, 2, 3])
    box = (20, 15, 20, 40)  # Top, left, height, width.
    placed = place_objects(seen_in(objects, box), box[2:], (10, 20), False, 4)
    assert placed["valid"].tolist() == [True, True, False, False] and placed["labels"].tolist() == [1, 2, 3, 0]
    np.testing.assert_allclose(placed["boxes"][:2], [[0, 0, 7.5, 10], [0, 0, 2.5, 2.5]])
