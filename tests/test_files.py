"""Files that are whole or absent."""

import os

import pytest

from resnet_jax.errors import UserError
from resnet_jax.files import check_outputs, replace_atomically


def test_content_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "config.json"
    for text in (b"one", b"another, longer one", b""):
        with replace_atomically(path) as file:
            file.write(text)
        assert path.read_bytes() == text
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_old_content_stays_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_bytes(b"old")

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"), replace_atomically(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    target, link = tmp_path / "results.csv", tmp_path / "link.csv"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with replace_atomically(link) as file:
        file.write(b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"


def test_a_pipe_is_written_to_and_stays(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with replace_atomically(path) as file:
        file.write(b"text")
    assert os.read(reader, 10) == b"text" and path.is_fifo()
    os.close(reader)


def test_the_longest_name_can_be_written(tmp_path):
    path = tmp_path / ("\u00e9" * 127)
    with replace_atomically(path) as file:
        file.write(b"text")
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_could_not_be_written_are_found_before_the_work(tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "a.csv")
    check_outputs(tmp_path / "new" / "a.csv", tmp_path / "file")
    for paths, fault in (
        ((tmp_path,), "is a folder; name a file"),
        ((tmp_path / "file" / "a.csv",), "cannot be written, because .*file is no folder"),
        ((tmp_path / "a.csv", tmp_path / "link"), "link is given twice; name two files"),
    ):
        with pytest.raises(UserError, match=fault):
            check_outputs(*paths)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]
