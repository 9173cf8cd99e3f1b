"""Progressive resizing: the size by step against FFCV's rule, and batches of photographs that follow it."""

from itertools import pairwise

import numpy as np
import pytest
from pydantic import ValidationError

from resnet_jax.data.crops import Progressive, RandomResized
from resnet_jax.data.dataset import Share
from resnet_jax.data.photographs import Photographs


def ffcv(epoch, low, high, start, end):
    """Its ``get_resolution``: linear between the two epochs, to the nearest multiple of 32."""
    if epoch <= start:
        return low
    if epoch >= end:
        return high
    return int(np.round(np.interp([epoch], [start, end], [low, high])[0] / 32)) * 32


@pytest.mark.parametrize(("low", "high", "start", "end"), [(160, 192, 11, 13), (160, 192, 65, 76), (96, 224, 2, 20)])
def test_sizes_grow_by_epoch_as_in_ffcv(low, high, start, end):
    progressive = Progressive(start_size=low, begin=f"{start} epochs", end=f"{end} epochs")
    sizes = [progressive.size(step, 7, high) for step in range(7 * 90)]
    assert sizes == [ffcv(step // 7, low, high, start, end) for step in range(7 * 90)]
    assert len(set(sizes)) <= (high - low) // 32 + 2
    assert all(later >= earlier for earlier, later in pairwise(sizes))


def test_sizes_stay_between_the_first_and_the_last_whatever_the_multiple():
    progressive = Progressive(start_size=50, begin=0, end=100, multiple=40)
    assert {progressive.size(step, 1, 60) for step in range(100)} <= {50, 60}
    assert Progressive().size(5, 10, 224) == 224


def test_training_batches_have_the_sizes_of_their_steps_and_evaluation_the_crop_size(photograph_folder):
    settings = Photographs(
        name="folder",
        crop=RandomResized(),
        crop_size=48,
        train_crop_size=40,
        eval_shorter_side=48,
        progressive=Progressive(start_size=16, begin="1 epoch", end="3 epochs", multiple=8),
    )
    dataset = settings.load(str(photograph_folder.root))
    batches = list(dataset.training_batches(0, 2, 0, 12, Share()))  # An epoch is 3 steps of the 6 photographs.
    # 16 at first; in the third epoch half of the way to 40, which is 28, and 32 as a multiple of 8 (4 to the even).
    assert [batch["image"].shape[1] for batch in batches] == [16] * 6 + [32] * 3 + [40] * 3
    again = list(dataset.training_batches(0, 2, 7, 9, Share()))
    for batch, same in zip(batches[7:9], again, strict=True):
        np.testing.assert_array_equal(batch["image"], same["image"])
    assert dataset.crop_size == 48 and dataset.single_view("validation").canvas == (48, 48)


def test_copies_of_a_photograph_in_a_batch_are_cropped_differently(photograph_folder):
    settings = Photographs(name="folder", crop=RandomResized(), crop_size=24, eval_shorter_side=24, repeats=3)
    (batch,) = settings.load(str(photograph_folder.root)).training_batches(1, 6, 0, 1, Share())
    np.testing.assert_array_equal(batch["label"].reshape(3, 2), np.tile(batch["label"][:2], (3, 1)))
    assert len({image.tobytes() for image in batch["image"]}) == 6


@pytest.mark.parametrize(
    "values",
    [
        {"progressive": Progressive(start_size=300)},
        {"train_crop_size": 160, "progressive": Progressive(start_size=192)},
        {"train_crop_size": 300},  # More than the shorter side of the crop.
        {"repeats": 0},
    ],
    ids=str,
)
def test_sizes_that_cannot_be_are_refused(values):
    with pytest.raises(ValidationError):
        Photographs(**values)


def test_what_is_set_while_it_is_off_is_refused():
    with pytest.raises(ValidationError, match="end is set but not read, because start_size is not"):
        Progressive(end="5 epochs")
    for begin, end in (("13 epochs", "11 epochs"), (20, 20)):
        with pytest.raises(ValidationError, match="is not before end"):
            Progressive(start_size=160, begin=begin, end=end)
