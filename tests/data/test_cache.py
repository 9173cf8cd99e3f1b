import os
import re

import numpy as np
import pytest

from resnet_jax.data.cache import cache_dir, cached_arrays, fingerprint


class Decoder:
    """Counts its calls; each gives other arrays, so that a stale answer shows."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        rng = np.random.default_rng(self.calls)
        return rng.integers(256, size=(50, 8, 8, 3), dtype=np.uint8), rng.integers(10, size=50, dtype=np.int32)


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "records-0", tmp_path / "records-1"]
    for path in paths:
        path.write_bytes(b"some records")
    return paths


def entry():
    (path,) = cache_dir().iterdir()  # One file: no second entry, and nothing half-written left behind.
    return path


def test_a_hit_gives_the_decoded_arrays_without_decoding(files):
    decode = Decoder()
    first = cached_arrays("set-train", files, decode)
    assert_equal(cached_arrays("set-train", reversed(files), decode), first)
    assert decode.calls == 1
    assert entry().suffix == ".npz"


def test_names_have_separate_entries(files):
    train, test = Decoder(), Decoder()
    cached_arrays("set-train", files, train)
    cached_arrays("set-test", files, test)
    assert (train.calls, test.calls) == (1, 1)


def test_a_file_of_another_size_or_time_is_decoded_anew(files):
    decode = Decoder()
    cached_arrays("set-train", files, decode)
    files[1].write_bytes(b"some more records")
    second = cached_arrays("set-train", files, decode)
    assert decode.calls == 2
    stat = files[0].stat()
    os.utime(files[0], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    third = cached_arrays("set-train", files, decode)
    assert decode.calls == 3
    assert not np.array_equal(second[0], third[0])


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def flip_bits(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def replace_by_other_arrays(path):
    np.savez(path, something=np.zeros(3))


@pytest.mark.parametrize("damage", [truncate, empty, flip_bits, replace_by_other_arrays])
def test_a_damaged_entry_is_decoded_again_with_a_warning_and_replaced(files, damage, capsys):
    decode = Decoder()
    cached_arrays("set-train", files, decode)
    damage(entry())
    capsys.readouterr()
    second = cached_arrays("set-train", files, decode)
    assert decode.calls == 2
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ") and str(entry()) in warning and len(warning.splitlines()) == 1
    assert_equal(cached_arrays("set-train", files, decode), second)
    assert decode.calls == 2
    assert capsys.readouterr().err == ""


def test_a_cache_that_cannot_be_written_is_a_warning(files, tmp_path, monkeypatch, capsys):
    # Not a read-only folder: to root every folder is writable.
    monkeypatch.setenv("XDG_CACHE_HOME", str(files[0] / "below-a-file"))
    decode = Decoder()
    images, labels = cached_arrays("set-train", files, decode)
    assert decode.calls == 1
    assert_equal((images, labels), Decoder()())
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ") and str(cache_dir()) in warning
    assert files[0].read_bytes() == b"some records"


def test_cache_dir_is_in_the_home_folder_unless_told(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == tmp_path / ".cache" / "resnet_jax"


def test_a_name_with_characters_that_do_not_suit_a_file_is_an_entry(files):
    decode = Decoder()
    first = cached_arrays("emnist/letters-train[:90%]", files, decode)
    assert_equal(cached_arrays("emnist/letters-train[:90%]", files, decode), first)
    assert decode.calls == 1
    assert re.fullmatch(r"emnist_letters-train_90-[0-9a-f]{16}\.npz", entry().name)


def test_the_fingerprint_is_of_names_sizes_and_times_in_any_order(files, tmp_path):
    first = fingerprint(files)
    assert fingerprint(iter(files[::-1])) == first
    assert fingerprint(files[:1]) != first
    # The same folder by another path.
    (tmp_path / "link").symlink_to(tmp_path)
    assert fingerprint([tmp_path / "link" / path.name for path in files]) == first
    stat = files[1].stat()
    files[1].rename(tmp_path / "records-2")
    assert fingerprint([files[0], tmp_path / "records-2"]) != first
    (tmp_path / "records-2").rename(files[1])
    assert fingerprint(files) == first
    files[1].write_bytes(b"same records")  # As long, but later.
    os.utime(files[1], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert fingerprint(files) != first
