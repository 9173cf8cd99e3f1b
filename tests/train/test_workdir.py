"""The folder of a run: its files, its lock, and what is refused."""

import json
import subprocess
import sys

import jax
import pytest

from resnet_jax.errors import UserError
from resnet_jax.train.workdir import (
    check_path,
    initial_record,
    locked,
    prepare_workdir,
    read_class_names,
    refuse_config_data,
    refuse_other_classes,
)


def prepare(workdir, config, class_names=("cat", "dog"), start=None, passed_data=None):
    save = lambda path: path.write_bytes(b"normalization")  # noqa: E731
    prepare_workdir(workdir, config, save, list(class_names), (8, 12, 3), start, passed_data)


def test_the_folder_tells_how_the_run_came_about(tmp_path):
    prepare(tmp_path, '{"steps": 20}\n')
    assert (tmp_path / "config.json").read_text() == '{"steps": 20}\n'
    assert (tmp_path / "normalization.npz").read_bytes() == b"normalization"
    assert read_class_names(tmp_path) == ["cat", "dog"]
    assert json.loads((tmp_path / "image_shape.json").read_text()) == [8, 12, 3]
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__
    assert environment["command"] == sys.argv and len(environment["devices"]) == jax.device_count()


def test_another_config_takes_the_place_of_the_old_one_which_is_kept(tmp_path):
    for config in ("first", "first", "second", "third"):
        prepare(tmp_path, config)
    kept = {path.name: path.read_text() for path in tmp_path.glob("config*.json")}
    assert kept == {"config.json": "third", "config.1.json": "first", "config.2.json": "second"}


def test_the_record_of_the_weights_stays_on_resuming_and_goes_with_a_new_start_at_random(tmp_path):
    prepare(tmp_path, "", start={"kind": "file"})
    prepare(tmp_path, "", start=None)
    assert initial_record(tmp_path) == {"kind": "file"}
    for _ in range(2):
        prepare(tmp_path, "", start={})
        assert initial_record(tmp_path) == {}


def test_data_that_were_passed_are_remembered_until_the_config_s_are_trained_on(tmp_path):
    prepare(tmp_path, "")
    refuse_config_data(tmp_path)
    prepare(tmp_path, "", passed_data="arrays")
    with pytest.raises(UserError, match="on data that its program passed"):
        refuse_config_data(tmp_path)
    prepare(tmp_path, "")
    refuse_config_data(tmp_path)


def test_other_classes_or_another_order_are_refused(tmp_path):
    refuse_other_classes(tmp_path, ["cat", "dog"])  # Nothing was trained there.
    prepare(tmp_path, "")
    refuse_other_classes(tmp_path, ["cat", "dog"])
    for names in (["dog", "cat"], ["cat"]):
        with pytest.raises(UserError, match=f"the data have other classes than {tmp_path / 'class_names.json'}"):
            refuse_other_classes(tmp_path, names)


@pytest.mark.parametrize("content", [None, "[", "{}", "[1, 2]"])
def test_class_names_that_cannot_be_read_are_named(tmp_path, content):
    if content is not None:
        (tmp_path / "class_names.json").write_text(content)
    with pytest.raises(UserError, match=r"class_names\.json is missing or damaged .*; restore it"):
        read_class_names(tmp_path)


def test_the_lock_is_for_one_process_and_ends_with_it(tmp_path):
    program = f"""
import time
from pathlib import Path
from resnet_jax.train.workdir import locked
with locked(Path({str(tmp_path)!r})):
    print("locked", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="another process trains in"), locked(tmp_path):
            pass
        process.kill()
    with locked(tmp_path):
        pass


def test_a_file_system_without_locks_is_taken(tmp_path, monkeypatch):
    def unsupported(*arguments):
        raise OSError("no locks")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with locked(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"cannot write to workdir .*; choose another --workdir"),
        locked(tmp_path / "file"),
    ):
        pass


@pytest.mark.parametrize("name", ["run[1]", "a*", "what?", "a\\b", "caf\udce9"])
def test_a_path_in_which_nothing_saved_could_be_read_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"checkpoints cannot be kept in .*; use another path"):
        check_path(tmp_path / name)
    check_path(tmp_path / "$a b#c%{d}é")
