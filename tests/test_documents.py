"""The Python of README.md and docs/ runs, one block after the other, as a reader would paste it."""

import re
import shutil
from pathlib import Path

import jax
import pytest

from resnet_jax import create_model, save_torch
from resnet_jax.config import load_config, override
from resnet_jax.experiment.training import train

ROOT = Path(__file__).resolve().parent.parent


def blocks(document):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)


def run(document, codes):
    space = {"__name__": "document"}
    for number, code in enumerate(codes, start=1):
        exec(compile(code, f"{document}, block {number}", "exec"), space)
    return space


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    """A folder with the configs, a run of the quickstart and a file of weights, where the blocks name them."""
    pytest.importorskip("torch")  # Writes a .th file.
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    small = {"steps": 2, "log_every": 2, "model.width": 4, "model.stage_sizes": (1,)}
    train(override(load_config("configs/quickstart.py"), small), "runs/quickstart")
    model = create_model("resnet20")
    save_torch(jax.jit(model.init)(jax.random.key(0), jax.numpy.zeros((1, 32, 32, 3))), "resnet20.th", model=model)


@pytest.mark.slow
def test_the_readme(in_a_folder, capsys):
    space = run("README.md", blocks("README.md"))
    assert "resnet110" in capsys.readouterr().out
    assert space["stages"]["C5"].shape == (8, 7, 7, 2048)
    assert space["run"].step == 8  # Two epochs of 256 images in batches of 64.
    assert Path("quickstart.safetensors").is_file()


@pytest.mark.slow
def test_the_parts_of_a_detector(capsys):
    *codes, with_published_weights = blocks("docs/detection.md")
    assert "load_torch_detection" in with_published_weights  # Which are not here.
    space = run("docs/detection.md", codes)
    printed = capsys.readouterr().out.splitlines()
    commented = [code.partition("print(kept, valid)  # ")[2].partition("\n")[0] for code in codes]
    assert printed[0] == commented[0]
    assert "(2, 3, 7, 7, 256)" in printed
    assert jax.numpy.isfinite(space["total"]) and space["found"].boxes.shape == (2, 100, 4)


def test_a_section_of_detection_data():
    section, program = blocks("docs/detection_data.md")
    assert run("docs/detection_data.md", [section])["data"].canvas_stride == 16
    compile(program, "boxes.py", "exec")
