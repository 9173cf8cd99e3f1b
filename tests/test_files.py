"""Files that are whole or absent."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from resnet_jax.errors import UserError
from resnet_jax.files import check_output, expanded, replace_atomically

ROOT = Path(__file__).resolve().parent.parent


def test_a_user_without_a_home_is_an_error_in_one_line():
    assert expanded("~/weights.pth") == Path.home() / "weights.pth"
    with pytest.raises(UserError, match=r"^~no_such_user/weights\.pth begins with the home of a user who has none"):
        expanded("~no_such_user/weights.pth")


@pytest.mark.parametrize("address", ["gs://bucket/run", Path("gs://bucket/run"), "https://host/resnet50.pth"])
def test_an_address_is_refused_and_not_made_a_folder(address):
    with pytest.raises(UserError, match=r"^\w+:.* is an address; download or mount what is there"):
        expanded(address)
    for path in ("a:/b", "runs/gs:", "with:colon/run", "timm/resnet50.a1_in1k"):
        assert expanded(path) == Path(path)


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


def test_what_this_program_prints_to_is_not_replaced(tmp_path):
    code = (
        "from pathlib import Path\nfrom resnet_jax.files import replace_atomically\nprint('first')\n"
        "with replace_atomically(Path('/dev/stdout')) as file:\n    file.write(b'second\\n')\nprint('third')"
    )
    with (tmp_path / "log").open("w") as log:
        print("before", file=log, flush=True)
        subprocess.run([sys.executable, "-c", code], stdout=log, check=True, cwd=ROOT)
    assert (tmp_path / "log").read_text() == "before\nfirst\nsecond\nthird\n"


def test_a_file_keeps_its_permissions(tmp_path):
    path = tmp_path / "private"
    path.touch(mode=0o600)
    with replace_atomically(path) as file:
        file.write(b"text")
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_could_not_be_written_is_found_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("text")
    (tmp_path / "dangling").symlink_to(tmp_path / "file" / "a.csv")
    for path in (tmp_path / "new" / "a.csv", tmp_path / "file", Path("/dev/null")):
        check_output(path)
    check_output(tmp_path / "file", appends=True)
    for path, fault in (
        (tmp_path, "is a folder; name a file"),
        (Path("/"), "is a folder; name a file"),
        (tmp_path / "file" / "a.csv", "cannot be written, because .*file is no folder"),
        (tmp_path / "dangling", "cannot be written, because .*file is no folder"),
    ):
        with pytest.raises(UserError, match=fault):
            check_output(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file"]


# As a user who is not root sees it: to root all is writable.
@pytest.mark.parametrize(
    ("path", "appends", "closed", "refused"),
    [
        ("file", False, "", True),
        ("file", False, "file", False),
        ("file", True, "", False),
        ("file", True, "file", True),
        ("new", True, "", True),
        ("/dev/null", False, "/dev", False),
    ],
)
def test_what_is_replaced_needs_its_folder_and_what_is_appended_to_itself(
    tmp_path, monkeypatch, path, appends, closed, refused
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != tmp_path / closed)
    with pytest.raises(UserError, match="you may not write to") if refused else nullcontext():
        check_output(tmp_path / path, appends)
