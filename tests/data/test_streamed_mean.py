"""The mean image of photographs."""

import os

import numpy as np
import PIL.Image
import pytest

from resnet_jax.data import streamed
from resnet_jax.data.decode.boxes import CentralCrop
from resnet_jax.data.decode.images import crop_and_resize
from resnet_jax.data.streamed import StreamedDataset
from resnet_jax.errors import UserError
from tests.data.streamed_photographs import CROP, dataset, photographs, settings, write_folder


def broken(record):
    return record | {"image": b"garbage", "name": "broken.jpg"}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("chunk", [1, 32])
def test_the_mean_image_is_the_mean_of_the_central_crops(monkeypatch, threads, chunk):
    # Batches of 8, and one of 256 that holds all.
    monkeypatch.setattr(streamed, "CHUNK", chunk)
    records = photographs(21)
    cut = [
        crop_and_resize(record["image"], CentralCrop(12, CROP).box, (CROP, CROP))
        for i, record in enumerate(records)
        if i != 2
    ]
    records[2] = broken(records[2])
    mean = dataset({"train": records}, threads=threads, max_unreadable=1).mean_image()
    assert mean.shape == (CROP, CROP, 3) and mean.dtype == np.float64
    np.testing.assert_allclose(mean, np.mean(cut, axis=0, dtype=np.float64) / 255, rtol=1e-12)


def refuse(*_):
    raise AssertionError("not to be called")


def test_too_many_undecodable_photographs_are_a_user_error_and_no_mean_is_kept():
    records = photographs(4)
    spoiled = [*records[:3], broken(records[3])]
    with pytest.raises(UserError, match=r"^1 photographs cannot be decoded, more than config\.data\.max_unreadable 0;"):
        dataset({"train": spoiled}, max_unreadable=0).mean_image()
    dataset({"train": records}, max_unreadable=0).mean_image()


def test_the_mean_is_computed_once_for_the_same_photographs_and_crops(tmp_path, monkeypatch):
    write_folder(tmp_path, 5)
    first = settings().load(str(tmp_path)).mean_image()
    with monkeypatch.context() as patch:
        patch.setattr(StreamedDataset, "_mean_image", refuse)
        np.testing.assert_array_equal(settings().load(str(tmp_path)).mean_image(), first, strict=True)
    # Other crops have a mean of their own.
    assert settings(crop_size=6).load(str(tmp_path)).mean_image().shape == (6, 6, 3)
    assert not np.array_equal(settings(eval_shorter_side=10).load(str(tmp_path)).mean_image(), first)


def add(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.full((20, 20, 3), value, np.uint8)).save(path)


def test_the_mean_of_a_folder_is_computed_anew_when_a_photograph_is_added_or_overwritten(tmp_path):
    add(tmp_path / "train/cat/0.png", 0)
    assert settings(validation_fraction=0.0).load(str(tmp_path)).mean_image().mean() == 0
    add(tmp_path / "train/cat/1.png", 255)
    assert settings(validation_fraction=0.0).load(str(tmp_path)).mean_image().mean() == 0.5
    # In place, which leaves the times of the folders as they are, and the size of the file, too.
    path = tmp_path / "train/cat/1.png"
    before, data = path.stat(), path.read_bytes()
    folder_times = [folder.stat().st_mtime_ns for folder in (path.parent, path.parent.parent)]
    add(tmp_path / "51.png", 51)
    replacement = (tmp_path / "51.png").read_bytes().ljust(len(data), b"\0")
    with path.open("r+b") as file:
        file.write(replacement)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert len(replacement) == len(data)
    assert [folder.stat().st_mtime_ns for folder in (path.parent, path.parent.parent)] == folder_times
    assert abs(settings(validation_fraction=0.0).load(str(tmp_path)).mean_image().mean() - 0.1) < 1e-9
