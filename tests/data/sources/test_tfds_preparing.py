"""Where a data set is looked for, and what happens where it is not prepared."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from resnet_jax.data import Resident
from resnet_jax.data.sources import tfds as module
from resnet_jax.data.sources.tfds import open_builder, resolve_data_dir
from resnet_jax.errors import UserError


def pretend_tensorflow(monkeypatch, installed):
    find_spec = module.importlib.util.find_spec
    found = {"tensorflow": object() if installed else None}
    monkeypatch.setattr(
        module.importlib.util, "find_spec", lambda name, *rest: found[name] if name in found else find_spec(name)
    )


def pretend_child(monkeypatch, returncode):
    commands = []

    def run(command):
        commands.append(command)
        return SimpleNamespace(returncode=returncode)

    monkeypatch.setattr(module.subprocess, "run", run)
    return commands


def test_data_dir_is_the_argument_then_the_variable_then_the_default_of_tfds(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", "/from/variable")
    assert resolve_data_dir("/from/argument") == Path("/from/argument")
    assert resolve_data_dir("~/own") == tmp_path / "own"
    assert resolve_data_dir(None) == Path("/from/variable")
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert resolve_data_dir(None) == tmp_path / "tensorflow_datasets"


def test_a_data_set_not_prepared_and_no_tensorflow_names_the_one_command(monkeypatch, tmp_path):
    pretend_tensorflow(monkeypatch, installed=False)
    commands = pretend_child(monkeypatch, returncode=0)
    command = f"pip install tensorflow && python -m resnet_jax.data.prepare cifar10 --data_dir {tmp_path}"
    with pytest.raises(UserError, match=re.escape(command)) as caught:
        open_builder("cifar10", str(tmp_path))
    assert "is not prepared" in str(caught.value) and "\n" not in str(caught.value)
    assert commands == []
    assert list(tmp_path.iterdir()) == []


def test_with_tensorflow_a_child_process_prepares_and_its_failure_is_a_user_error(monkeypatch, tmp_path):
    pretend_tensorflow(monkeypatch, installed=True)
    commands = pretend_child(monkeypatch, returncode=1)
    with pytest.raises(UserError, match=f"preparing 'cifar10' in {re.escape(str(tmp_path))} failed"):
        open_builder("cifar10", str(tmp_path))
    assert commands == [[sys.executable, "-m", "resnet_jax.data.prepare", "cifar10", "--data_dir", str(tmp_path)]]


def test_preparation_that_left_nothing_is_a_user_error(monkeypatch, tmp_path):
    pretend_tensorflow(monkeypatch, installed=True)
    pretend_child(monkeypatch, returncode=0)
    with pytest.raises(UserError, match=r"'cifar10' .* is not prepared as array_record"):
        open_builder("cifar10", str(tmp_path))


@pytest.mark.parametrize("installed", [True, False])
def test_a_mistyped_data_dir_is_a_user_error_and_nothing_is_downloaded(monkeypatch, tmp_path, installed):
    pretend_tensorflow(monkeypatch, installed)
    commands = pretend_child(monkeypatch, returncode=0)
    wrong = tmp_path / "tensorflow_dtaasets"
    command = f"python -m resnet_jax.data.prepare cifar10 --data_dir {wrong}"
    with pytest.raises(
        UserError, match=f"config.data_dir {re.escape(str(wrong))} does not exist; .*{command}"
    ) as caught:
        open_builder("cifar10", str(wrong))
    assert "\n" not in str(caught.value)
    assert commands == [] and not wrong.exists()


def test_without_a_data_dir_a_data_set_is_prepared_on_first_use(monkeypatch, tmp_path):
    pretend_tensorflow(monkeypatch, installed=True)
    commands = pretend_child(monkeypatch, returncode=1)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "new"))
    with pytest.raises(UserError, match=r"preparing 'cifar10' in .* failed"):
        open_builder("cifar10", None)
    assert commands == [
        [sys.executable, "-m", "resnet_jax.data.prepare", "cifar10", "--data_dir", str(tmp_path / "new")]
    ]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cifar1O", "did you mean 'cifar10'?"),
        ("digit", "did you mean 'digits'?"),
        ("qqqqqqqq", "use digits, folder, packed, csv, jsonl, huggingface or one of those"),
    ],
)
def test_an_unknown_name_is_a_user_error_with_a_hint(monkeypatch, tmp_path, name, hint):
    commands = pretend_child(monkeypatch, returncode=0)
    pretend_tensorflow(monkeypatch, installed=True)
    message = rf"config\.data\.name is '{name}', which is not a data set .*{re.escape(hint)}"
    with pytest.raises(UserError, match=message):
        Resident(name=name).load(str(tmp_path))
    assert commands == []
