import os
import pickle
import re

import pytest
from tensorboardX.record_writer import RecordWriter

from resnet_jax.data.cache import cache_dir
from resnet_jax.data.sources import tfrecord
from resnet_jax.data.sources.tfrecord import TFRecordSource, index_records
from resnet_jax.errors import UserError

RECORDS = [[b"a", b"bc" * 500, b"d" * 70_000], [b"one record"], [bytes(range(256)), b"last"]]


def write(path, records):
    writer = RecordWriter(str(path))
    for record in records:
        writer.write(record)
    writer.close()


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"set-train.tfrecord-0000{number}-of-00003" for number in range(3)]
    for path, records in zip(paths, RECORDS, strict=True):
        write(path, records)
    return paths


def read(files):
    source = TFRecordSource(files, index_records(files, "set-train"))
    return [source[i] for i in range(len(source))]


def test_every_record_is_read_in_the_order_of_the_sorted_files(files):
    expected = [record for records in RECORDS for record in records]
    assert read(files) == expected
    assert read(files[::-1]) == expected


def test_the_layout_is_that_of_tensorflow(tmp_path):
    path = tmp_path / "one"
    # As the file format's description has it, and not as the package that writes the other files does it.
    length = bytes([5, 0, 0, 0, 0, 0, 0, 0])
    path.write_bytes(length + bytes(4) + b"hello" + bytes(4))
    assert index_records([path], "set").tolist() == [(0, 12, 5)]
    assert read([path]) == [b"hello"]


def test_a_part_of_the_index_is_a_source_and_it_can_be_pickled(files):
    index = index_records(files, "set-train")
    source = pickle.loads(pickle.dumps(TFRecordSource(files, index[2:5])))
    assert [source[i] for i in range(len(source))] == [RECORDS[0][2], RECORDS[1][0], RECORDS[2][0]]


def test_files_are_indexed_once(files, monkeypatch):
    first = index_records(files, "set-train")
    monkeypatch.delattr(tfrecord, "_walk")
    assert index_records(files, "set-train").tolist() == first.tolist()


def test_a_changed_file_is_indexed_again(files):
    read(files)
    write(files[1], [b"not one", b"but two"])
    assert read(files)[3:5] == [b"not one", b"but two"]
    stat = files[1].stat()
    write(files[1], [b"as", b"long as before"[: stat.st_size - 34]])
    assert files[1].stat().st_size == stat.st_size
    os.utime(files[1], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    assert read(files)[3] == b"as"


def cut(path, size):
    os.truncate(path, size)


def in_the_data(path):
    cut(path, path.stat().st_size - 10)


def in_a_length(path):
    cut(path, 12 + 1 + 4 + 3)


def in_the_last_checksum(path):
    cut(path, path.stat().st_size - 1)


def more_at_the_end(path):
    path.write_bytes(path.read_bytes() + b"more")


def a_hole_at_the_end(path):
    cut(path, path.stat().st_size + 16 * 100)


def a_huge_length(path):
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def something_else(path):
    path.write_bytes(b"PK\x03\x04" + bytes(range(1, 200)))


@pytest.mark.parametrize(
    "damage",
    [
        in_the_data,
        in_a_length,
        in_the_last_checksum,
        more_at_the_end,
        a_hole_at_the_end,
        a_huge_length,
        something_else,
    ],
)
def test_a_damaged_file_is_a_user_error_that_names_it(files, damage, tmp_path):
    damage(files[0])
    with pytest.raises(UserError, match=re.escape(str(files[0])) + " is truncated or corrupt") as caught:
        index_records(files, "set-train")
    assert "\n" not in str(caught.value)
    assert not list(cache_dir().rglob("*")), "the index of a damaged file was cached"


def test_a_missing_file_is_a_user_error_that_names_it(files):
    files[1].unlink()
    with pytest.raises(UserError, match=re.escape(str(files[1])) + " is missing"):
        index_records(files, "set-train")


def test_a_file_cut_short_after_it_was_indexed_is_a_user_error(files):
    source = TFRecordSource(files, index_records(files, "set-train"))
    in_the_data(files[2])
    assert source[4] == RECORDS[2][0]
    with pytest.raises(UserError, match=re.escape(str(files[2]))):
        source[5]


def test_more_files_than_a_process_may_have_open(tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = [tmp_path / f"set-{number:03}" for number in range(100)]
    for number, path in enumerate(files):
        write(path, [b"%d" % number])
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 50, hard))
    try:
        assert read(files) == [b"%d" % number for number in range(100)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
