"""Files that are whole or absent."""

import os

import pytest

from resnet_jax.files import replace_atomically


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
