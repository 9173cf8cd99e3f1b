"""The programs of examples/ run, and do what they say."""

import importlib.util
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from resnet_jax import create_model, load_run
from resnet_jax.config import load_config, override
from resnet_jax.experiment.training import train

ROOT = Path(__file__).resolve().parent.parent


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The workdir of a run of a few steps."""
    workdir = tmp_path_factory.mktemp("teacher")
    changes = {"steps": 4, "log_every": 4, "model.width": 4, "model.stage_sizes": (1,)}
    train(override(load_config("configs/quickstart.py"), changes), workdir)
    return workdir


@pytest.mark.extensive
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_targets_are_partly_what_the_teacher_says(teacher, share):
    module, run = example("distillation"), load_run(teacher)
    student = create_model("resnet20", width=4, stage_sizes=(1,))
    task = module.Distillation(student, run.normalize, teacher=(run.model, run.variables), share=share)
    images = np.random.default_rng(0).integers(256, size=(5, *run.image_shape), dtype=np.uint8)
    batch = task.prepare(jax.random.key(0), {"image": images, "label": np.arange(5)})
    theirs = jax.nn.softmax(run.model.apply(run.variables, run.normalize(images), train=False))
    np.testing.assert_allclose(batch["target"], (1 - share) * np.eye(10)[:5] + share * theirs, atol=1e-6)


@pytest.mark.extensive
def test_distillation_trains_a_network_in_a_loop_of_its_own(teacher, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["distillation.py", f"--teacher={teacher}", "--steps=60"])
    example("distillation").main()
    said = capsys.readouterr()
    assert "step 60/60: loss" in said.err and said.out.startswith("test error ")
    assert float(said.out.split()[2]) < 85  # Guesses are wrong in 90 %.
