import io
import os
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tests.programs.program_calls import TINY


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """Two photographs in a folder of the working directory."""
    rng = np.random.default_rng(0)
    monkeypatch.chdir(tmp_path)
    paths = [Path("pets/cat.jpg"), Path("pets/dog.png")]
    paths[0].parent.mkdir()
    for path in paths:
        PIL.Image.fromarray(rng.integers(256, size=(40, 50, 3), dtype=np.uint8)).save(path)
    return [str(path) for path in paths]


@pytest.mark.parametrize("flags_last", [False, True])
def test_predict_prints_the_best_classes_of_each_photograph(
    run_here, load_main, weights, photographs, tmp_path, capsys, flags_last
):
    cat, dog = photographs
    named = [dog, "pets"]  # A file and a folder.
    given = [*TINY, "--torch_weights", weights[0], "--save_dir", str(tmp_path / "pictures")]
    run_here(load_main("predict"), *(named + given if flags_last else given + named))
    lines = capsys.readouterr().out.splitlines()
    assert [lines[i] for i in range(0, 18, 6)] == [dog, cat, dog]
    assert len(lines) == 18
    assert lines[0:6] == lines[12:18] != [lines[0], *lines[7:12]]
    percent = [float(line.split("%")[0]) for line in lines[1:6]]
    assert percent == sorted(percent, reverse=True) and 0 < sum(percent) <= 100.05
    assert {line.split("%  ")[1] for line in lines[1:6]} < {str(digit) for digit in range(10)}
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["pets_cat.jpg.png", "pets_dog.png.png"]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--torch_weights={weights}"], "IMAGE is missing"),
        (["--torch_weights={weights}", "{image}", "no_such.jpg"], "there is no file or folder no_such.jpg"),
        (["--torch_weights={weights}", "{folder}"], "there are no photographs in {folder}"),
        (["{image}"], "give either --workdir or --torch_weights"),
        (["--torch_weights={weights}", "--workdir=no_such", "{image}"], "give either --workdir or --torch_weights"),
        (["--torch_weights=no_such.pth", "{image}"], "there is no file no_such.pth"),
        (["--workdir=no_such", "{image}"], "there is no run in no_such"),
        (["--torch_weights={weights}", "--checkpoint=worst", "{image}"], "checkpoint"),
        (["--torch_weights={weights}", "--config.model.name=resnet21", "{image}"], "did you mean"),
        (["--torch_weights={weights}", "--split=test", "{image}"], "split"),
        (["--torch_weights={weights}", "--local_processes=2", "{image}"], "this program is for one process"),
    ],
)
def test_predict_names_what_is_wrong(refuse, load_main, weights, photographs, tmp_path, arguments, fault):
    (tmp_path / "empty").mkdir()
    places = {"weights": weights[0], "image": photographs[0], "folder": tmp_path / "empty"}
    error = refuse(load_main("predict"), *TINY, *(argument.format(**places) for argument in arguments))
    assert fault.format(**places) in error


def test_a_name_that_is_not_utf_8_is_printed_as_it_is(run_here, load_main, tiny_run, photographs, capsysbinary):
    named = os.fsdecode(b"pets/caf\xe9.jpg")
    os.rename(photographs[0], named)
    run_here(load_main("predict"), "--workdir", tiny_run, named)
    assert capsysbinary.readouterr().out.splitlines()[0] == b"pets/caf\xe9.jpg"


def test_what_the_terminal_cannot_show_is_printed_by_its_number(
    run_here, load_main, tiny_run, photographs, monkeypatch
):
    named = os.fsdecode("pets/\u732b".encode() + b"\xe9.jpg")
    os.rename(photographs[0], named)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    run_here(load_main("predict"), "--workdir", tiny_run, named)
    sys.stdout.flush()
    assert written.getvalue().splitlines()[0] == b"pets/\\u732b\xe9.jpg"


def test_predict_takes_the_config_from_the_workdir_alone(run_here, load_main, tiny_run, photographs, capsys):
    run_here(load_main("predict"), "--workdir", tiny_run, photographs[0])
    assert len(capsys.readouterr().out.splitlines()) == 6
