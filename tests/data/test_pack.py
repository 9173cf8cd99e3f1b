import io
import pickle
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from resnet_jax.data import pack
from resnet_jax.data.pack import packed_size, write_pack
from resnet_jax.data.sources.packed import open_pack
from resnet_jax.errors import UserError

CLASSES = ["cat", "tench, Tinca tinca"]


def encoded(pixels):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def photographs(count=40):
    """Of many sizes, up to a shorter side of 24; every third one is pixels and not a file."""
    found = []
    for i in range(count):
        rng = np.random.default_rng(i)
        pixels = rng.integers(256, size=(4 + i % 21, 30 - i % 11, 3), dtype=np.uint8)
        found.append({"image": pixels if i % 3 == 0 else encoded(pixels), "label": i % 2, "name": f"val/é{i}.jpg"})
    return found


def pixels_of(record):
    image = record["image"]
    return image if isinstance(image, np.ndarray) else np.asarray(PIL.Image.open(io.BytesIO(image)))


def records(source):
    return [source[i] for i in range(len(source))]


def test_photographs_are_packed_in_order_and_no_pixel_of_small_ones_changes(tmp_path, capsys):
    source = photographs()
    write_pack(source, tmp_path / "new" / "pack", "validation", 24, CLASSES, threads=4)
    found = open_pack(tmp_path / "new" / "pack", "validation")
    assert found.class_names == CLASSES
    assert len(found) == len(source)
    for record, original in zip(records(found), source, strict=True):
        assert (record["label"], record["name"]) == (original["label"], original["name"])
        assert type(record["label"]) is int and type(record["name"]) is str
        assert type(record["image"]) is np.ndarray and record["image"].dtype == np.uint8
        np.testing.assert_array_equal(record["image"], pixels_of(original))
    out = capsys.readouterr().out
    assert re.search(r"validation: 40 images, 0\.00 GiB, \d+ images/s$", out.strip())
    assert sorted(path.name for path in (tmp_path / "new" / "pack").iterdir()) == ["validation.bin", "validation.npz"]


def test_a_longer_shorter_side_is_reduced(tmp_path):
    # A ramp, because its resized pixels are known: each is its column's share of 255.
    ramp = np.broadcast_to(np.linspace(0, 255, 90)[:, None, None], (90, 60, 3)).round().astype(np.uint8)
    source = [{"image": image, "label": 0, "name": ""} for image in (ramp, encoded(ramp), ramp.swapaxes(0, 1))]
    write_pack(source, tmp_path, "train", 20, CLASSES)
    tall, same, wide = (record["image"] for record in records(open_pack(tmp_path, "train")))
    assert tall.shape == same.shape == (30, 20, 3) and wide.shape == (20, 30, 3)
    expected = ramp[:, :1].reshape(30, 3, 3).mean(axis=1)[:, None]
    for image in (tall, same, wide.swapaxes(0, 1)):
        np.testing.assert_allclose(image, np.broadcast_to(expected, image.shape), atol=2)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((400, 300), (341, 256)),
        ((300, 400), (256, 341)),
        ((256, 999), (256, 999)),
        ((10, 20), (10, 20)),
        ((1, 5), (1, 5)),
    ],
)
def test_the_size_in_the_pack(size, expected):
    assert packed_size(*size, shorter_side=256) == expected


def test_unreadable_photographs_are_named_and_left_out(tmp_path, capsys):
    source = photographs(10)
    for i in (2, 7):
        source[i] = source[i] | {"image": b"no image", "name": f"broken{i}.jpg"}
    write_pack(source, tmp_path, "train", 24, CLASSES)
    found = records(open_pack(tmp_path, "train"))
    left = [record for i, record in enumerate(source) if i not in (2, 7)]
    assert [record["name"] for record in found] == [record["name"] for record in left]
    for record, original in zip(found, left, strict=True):
        np.testing.assert_array_equal(record["image"], pixels_of(original))
        assert record["label"] == original["label"]
    out, err = capsys.readouterr()
    # Not by lines: where a bar of another test is still alive, what moves the cursor past it comes before a warning.
    assert re.findall(r"warning: (\S+) cannot be decoded", err) == ["broken2.jpg", "broken7.jpg"]
    assert "8 images" in out and "2 left out" in out


def test_nothing_that_can_be_decoded_is_a_user_error(tmp_path):
    source = [{"image": b"no image", "label": 0, "name": f"{i}.jpg"} for i in range(3)]
    with pytest.raises(UserError, match="none of the 3 photographs"):
        write_pack(source, tmp_path, "train", 24, CLASSES)
    with pytest.raises(UserError):
        open_pack(tmp_path, "train")


def test_an_image_is_a_read_only_view_of_the_file(tmp_path):
    write_pack(photographs(), tmp_path, "train", 24, CLASSES)
    source = open_pack(tmp_path, "train")
    image, again = source[5]["image"], source[5]["image"]
    assert np.shares_memory(image, again)
    with pytest.raises(ValueError, match="read-only"):
        image[0] = 0


def test_a_source_can_be_pickled_small_and_read_by_many_threads_at_once(tmp_path):
    write_pack(photographs(), tmp_path, "train", 24, CLASSES)
    source = open_pack(tmp_path, "train")
    pickled = pickle.dumps(source)
    assert len(pickled) < 1000
    copy = pickle.loads(pickled)
    assert copy.class_names == CLASSES
    with ThreadPoolExecutor(8) as pool:
        for i, record in enumerate(pool.map(lambda i: copy[i % 40], range(200))):
            np.testing.assert_array_equal(record["image"], source[i % 40]["image"])
            assert record["name"] == source[i % 40]["name"]
    with pytest.raises(IndexError):
        copy[40]


class Interrupted:
    """A source whose last records cannot be had."""

    def __init__(self, records, whole):
        self.records, self.whole = records, whole

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i):
        if i >= self.whole:
            raise KeyboardInterrupt
        return self.records[i]


def test_an_interrupted_pack_is_not_taken_for_a_whole_one_and_is_begun_again(tmp_path, monkeypatch):
    source = photographs()
    with monkeypatch.context() as patch:
        patch.setattr(pack, "_check_space", lambda *arguments: None)  # It reads the last record, too.
        with pytest.raises(KeyboardInterrupt):
            write_pack(Interrupted(source, 30), tmp_path, "train", 24, CLASSES, threads=2)
    assert (tmp_path / "train.bin").stat().st_size > 0
    with pytest.raises(UserError, match=r"was not finished; make it with python -m resnet_jax.data.pack"):
        open_pack(tmp_path, "train")
    write_pack(source, tmp_path, "train", 24, CLASSES)
    for record, original in zip(records(open_pack(tmp_path, "train")), source, strict=True):
        np.testing.assert_array_equal(record["image"], pixels_of(original))


def test_a_finished_pack_is_kept_and_another_in_its_place_is_a_user_error(tmp_path, capsys):
    write_pack(photographs(), tmp_path, "train", 24, CLASSES)
    before = (tmp_path / "train.bin").read_bytes()
    capsys.readouterr()
    write_pack(photographs(), tmp_path, "train", 24, CLASSES)
    assert "is packed already: 40 images" in capsys.readouterr().out
    for source, shorter_side, classes in [
        (photographs(39), 24, CLASSES),
        (photographs(), 16, CLASSES),
        (photographs(), 24, ["cat", "dog"]),
    ]:
        with pytest.raises(UserError, match=re.escape(f"or delete {tmp_path / 'train.npz'}")) as caught:
            write_pack(source, tmp_path, "train", shorter_side, classes)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "train.bin").read_bytes() == before
    write_pack(photographs(5), tmp_path, "validation", 24, CLASSES)
    assert len(open_pack(tmp_path, "train")) == 40 and len(open_pack(tmp_path, "validation")) == 5


def test_too_little_space_is_a_user_error_before_anything_is_written(tmp_path, monkeypatch):
    source = [{"image": np.zeros((100, 200, 3), np.uint8), "label": 0, "name": ""}] * 500
    needed = 500 * 10 * 20 * 3  # With the shorter side reduced to 10.
    monkeypatch.setattr(pack.shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1))
    with pytest.raises(UserError, match=r"needs about 0\.0 GiB") as caught:
        write_pack(source, tmp_path, "train", 10, CLASSES)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(pack.shutil, "disk_usage", lambda path: SimpleNamespace(free=needed))
    write_pack(source, tmp_path, "train", 10, CLASSES)
    assert (tmp_path / "train.bin").stat().st_size == needed


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=re.escape(f"cannot pack into {tmp_path / 'file'}")):
        write_pack(photographs(3), tmp_path / "file", "train", 24, CLASSES)


def test_only_some_photographs_are_held_in_memory():
    started = []

    def make(i):
        started.append(i)
        if i == 0:
            time.sleep(0.2)  # The other thread could make all the others.
        return i

    made = pack._in_order(make, 200, threads=2)
    assert next(made) == 0
    assert len(started) <= 8
    assert list(made) == list(range(1, 200))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def delete(path):
    path.unlink()


def replace(path):
    path.write_bytes(b"something else")


@pytest.mark.parametrize(
    ("damage", "file"),
    [(truncate, "train.bin"), (delete, "train.bin"), (truncate, "train.npz"), (replace, "train.npz")],
)
def test_a_damaged_pack_is_a_user_error_with_the_fix(tmp_path, damage, file):
    write_pack(photographs(), tmp_path, "train", 24, CLASSES)
    damage(tmp_path / file)
    fix = f"delete {tmp_path / 'train.npz'} and make it again with python -m resnet_jax.data.pack"
    with pytest.raises(UserError, match=re.escape(fix)) as caught:
        open_pack(tmp_path, "train")
    assert str(tmp_path / "train") in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match=re.escape(fix)):
        write_pack(photographs(), tmp_path, "train", 24, CLASSES)
    (tmp_path / "train.npz").unlink()
    write_pack(photographs(), tmp_path, "train", 24, CLASSES)
    assert len(open_pack(tmp_path, "train")) == 40


def test_no_pack_is_a_user_error_with_the_command(tmp_path):
    with pytest.raises(UserError, match=r"train does not exist; make it with python -m resnet_jax.data.pack"):
        open_pack(tmp_path / "nowhere", "train")


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["pack", *map(str, arguments)])
    pack.main()


def test_the_command_packs_training_and_scored_photographs_of_a_folder(tmp_path, monkeypatch):
    for split in ("train", "val"):
        for i, record in enumerate(photographs(3)):
            path = tmp_path / "set" / split / "cat" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(pixels_of(record)))
    run(monkeypatch, "folder", "--data_dir", tmp_path / "set", "--out", tmp_path / "pack", "--shorter_side", 5)
    for split in ("train", "validation"):
        found = open_pack(tmp_path / "pack", split)
        assert (len(found), found.class_names, found.shorter_side) == (3, ["cat"], 5)
    with pytest.raises(SystemExit, match=r"^error: there is no folder .*nowhere"):
        run(monkeypatch, "folder", "--data_dir", tmp_path / "nowhere", "--out", tmp_path / "pack")
    with pytest.raises(SystemExit, match=r"^error: --shorter_side is 0; it must be at least 1$"):
        run(monkeypatch, "folder", "--data_dir", tmp_path / "set", "--out", tmp_path / "pack", "--shorter_side", 0)
