"""Localisers' answers in pixels of the photographs, by every view of them, and their errors."""

import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data import DetectionData
from resnet_jax.data.crops import ScaleJitter
from resnet_jax.data.detection.dataset import DetectionDataset
from resnet_jax.data.normalization import Normalization
from resnet_jax.data.sources.detection.protocol import OpenedDetection, make_objects
from resnet_jax.detection.localiser import Located
from resnet_jax.errors import UserError
from resnet_jax.evaluation.detection.localiser import make_localiser, own_classes, score_localiser

PLAIN = Normalization(np.zeros(3, np.float32), np.ones(3, np.float32))
SETTINGS = DetectionData(
    train=("train",), validation=("val",), test=(), short_sides=(32,), max_side=64, training_crop=ScaleJitter(),
    crop_size=32, eval_short_side=40, max_boxes=3, threads=2,
)  # fmt: skip


class Rectangles:
    """Photographs of a white rectangle on black; the fourth has none that is annotated, and the sixth is broken."""

    shorter_side = None
    sizes = [(80, 100), (120, 70), (90, 90), (64, 80), (77, 131), (50, 50)]
    boxes = [(30, 20, 70, 60), (15, 40, 55, 90), (25, 25, 65, 70), (20, 20, 50, 40), (45, 20, 95, 60), (1, 1, 9, 9)]
    labels = [2, 0, 1, 2, 1, 0]

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        image = np.zeros((*self.sizes[index], 3), np.uint8)
        x1, y1, x2, y2 = self.boxes[index]
        image[y1:y2, x1:x2] = 255
        return {"image": b"no image" if index == 5 else image, "label": 0, "name": f"val/{index}.png"}

    def objects(self, index):
        if index == 3:
            return make_objects([self.boxes[3]], [2], crowd=[True])
        # A second object of the class, and before them a crowd of another.
        boxes = [(0, 0, 9, 9), self.boxes[index], (0, 0, 4, 4)]
        return make_objects(boxes, [9, self.labels[index], self.labels[index]], crowd=[True, False, False])

    def image_id(self, index):
        return index

    def files(self):
        return []


class Bright:
    """In place of a localiser: finds the bright part; surer by ``bonus``. Of class 1 it is the left half of it."""

    def apply(self, variables, images, image_hw, labels, stage):
        bright = images.mean(axis=-1) > 0.5

        def ends(line):
            places = jnp.arange(line.shape[1])
            return jnp.where(line, places, 10_000).min(axis=1), jnp.where(line, places + 1, 0).max(axis=1)

        (x1, x2), (y1, y2) = ends(bright.any(axis=1)), ends(bright.any(axis=2))
        box = jnp.stack([x1, y1, x2, y2], axis=1).astype(jnp.float32)
        half = jnp.stack([x1, y1, (x1 + x2) / 2, y2], axis=1)
        boxes = jnp.where((labels == 1)[..., None], half[:, None], box[:, None])
        return Located(boxes, jnp.where(labels == 2, 5.0, -5.0) + variables["bonus"])


@pytest.fixture(scope="module")
def dataset():
    opened = OpenedDetection({"val": Rectangles()}.__getitem__, ["cat", "dog", "eel"], [0, 1, 2])
    return DetectionDataset(opened, SETTINGS)


def views(dataset, protocol):
    return {
        "single": [[dataset.single_view("validation")]],
        "dense": [dataset.whole_views("validation")],
        "scales": [dataset.whole_views("validation", side) for side in (40, 56)],
    }[protocol]


@pytest.mark.parametrize("stage", ["rpn", "rcnn"])
@pytest.mark.parametrize("protocol", ["single", "dense", "scales"])
def test_answers_are_in_pixels_of_the_photographs_by_any_view(protocol, stage, dataset, mesh):
    scales = views(dataset, protocol)
    answer = make_localiser([Bright()], [PLAIN], dataset, "validation", mesh, 3, stage, scales)
    labels = np.array([[2, 1], [0, 2], [1, 0], [1, 1], [0, 0], [0, 0]])
    found = answer([{"bonus": jnp.float32(0)}], labels)
    for index, box in enumerate(Rectangles.boxes[:5]):
        for place, label in enumerate(labels[index]):
            x1, y1, x2, y2 = box
            expected = (x1, y1, (x1 + x2) / 2, y2) if label == 1 else box
            np.testing.assert_allclose(found.boxes[index, place], expected, atol=2.5)
            assert found.scores[index, place] == (5 if label == 2 else -5)
    assert (found.scores[5] == -np.inf).all()  # It cannot be decoded.


def test_of_several_models_the_surer_answers(dataset, one_device):
    class Whole(Bright):
        def apply(self, variables, images, image_hw, labels, stage):
            found = super().apply(variables, images, image_hw, labels, stage)
            return found._replace(boxes=jnp.zeros_like(found.boxes))

    for bonus, zero in ((1, True), (-1, False)):
        answer = make_localiser(
            [Bright(), Whole()], [PLAIN] * 2, dataset, "validation", one_device, 8, "rpn", views(dataset, "dense")
        )
        found = answer([{"bonus": jnp.float32(0)}, {"bonus": jnp.float32(bonus)}], np.zeros((6, 1), int))
        assert (found.boxes[:5] == 0).all() == zero and found.scores[0, 0] == -5 + max(bonus, 0)


def test_errors_under_the_given_and_under_predicted_classes(dataset, one_device):
    table = dataset.ground_truth("validation")
    assert own_classes(table).tolist() == [2, 0, 1, -1, 1, 0]
    answer = make_localiser([Bright()], [PLAIN], dataset, "validation", one_device, 8, "rpn", views(dataset, "dense"))
    variables = [{"bonus": jnp.float32(0)}]
    # Half of the box overlaps by half, give or take a pixel; as its left half it is taken for right or wrong by itself.
    given = score_localiser(lambda labels: answer(variables, labels), dataset, "validation")
    assert list(given.wrong) == [0, 1, 2, 4] and not given.wrong[0] and not given.wrong[1]
    assert given.figures == {"given_class_error": 100 * sum(given.wrong.values()) / 4}
    # The own class first, third, never and, beyond the fifth, sixth.
    predicted = np.zeros((6, 6), int)
    predicted[0], predicted[1], predicted[2], predicted[4] = [2] * 6, [2, 2, 0, 1, 1, 1], [0] * 6, [0] * 5 + [1]
    found = score_localiser(lambda labels: answer(variables, labels), dataset, "validation", predicted)
    assert found.figures["given_class_error"] == given.figures["given_class_error"]
    assert found.figures["top1_localisation_error"] == 75 and found.figures["top5_localisation_error"] == 50


def test_a_split_without_objects_is_refused(one_device):
    class Empty(Rectangles):
        def objects(self, index):
            return make_objects([], [])

    data = DetectionDataset(OpenedDetection({"val": Empty()}.__getitem__, ["cat"], [0]), SETTINGS)
    with pytest.raises(UserError, match="no photograph of the split 'validation' has an object"):
        score_localiser(lambda labels: None, data, "validation")


@pytest.mark.parametrize("protocol", ["single", "dense"])
def test_a_split_of_which_no_photograph_can_be_decoded_is_refused(protocol, one_device):
    class Broken(Rectangles):
        def __getitem__(self, index):
            return super().__getitem__(5)

    data = DetectionDataset(OpenedDetection({"val": Broken()}.__getitem__, ["cat"], [0]), SETTINGS)
    answer = make_localiser([Bright()], [PLAIN], data, "validation", one_device, 8, "rpn", views(data, protocol))
    with pytest.raises(UserError, match="no photograph of the split 'validation' has an object and can be decoded"):
        score_localiser(lambda labels: answer([{"bonus": jnp.float32(0)}], labels), data, "validation")
