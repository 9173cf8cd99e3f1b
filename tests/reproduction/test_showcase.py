"""The picture of a trained network."""

import numpy as np
import PIL.Image

from reproduction.showcase import chosen_examples, confusion, draw
from resnet_jax.evaluation.classify import Scores


def scores_of(probabilities, labels):
    return Scores(np.log(np.float32(probabilities)), np.int32(labels), set())


SCORES = scores_of(
    [[0.9, 0.05, 0.05], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]], [0, 0, 1, 1, 1]
)


def test_the_confusion_is_a_part_of_each_class():
    np.testing.assert_allclose(confusion(SCORES), [[1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3], [0, 0, 0]])


def test_the_examples_are_the_first_ones_and_the_surest_of_the_wrong():
    assert chosen_examples(SCORES, 2) == ([0, 1], [3, 1])
    assert chosen_examples(SCORES, 4)[1] == [3, 1, 2]  # No more are wrong.


def test_the_picture_is_drawn_also_of_grey_images_and_few_errors(tmp_path):
    curves = {"train": [[1, 30.0], [2, 10.0]], "test": [[2, 20.0]]}
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
    scores = scores_of(np.tile(SCORES.log_probs, (3, 1))[:12] * 0 + 1 / 3, [0] * 11 + [2])
    draw(tmp_path / "new" / "picture.png", "a title", curves, scores, images, ["ant", "bee", "cat"], 8.75)
    with PIL.Image.open(tmp_path / "new" / "picture.png") as picture:
        assert picture.size == (1320, 770) and len(picture.convert("RGB").getcolors(1 << 24)) > 50
