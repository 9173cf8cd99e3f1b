"""Main functions run in this process, and what they are given: weights and a finished run."""

import importlib
import signal
import sys

import jax
import numpy as np
import pytest
from absl import flags, logging
from absl.testing import flagsaver

from resnet_jax.config import load_config, override
from resnet_jax.experiment.training import train
from resnet_jax.interop.torch_weights import save_torch
from resnet_jax.models import create_model
from resnet_jax.programs import cli
from tests.programs.program_calls import QUICKSTART, snapshot, the_error


@pytest.fixture
def run_here(monkeypatch):
    """Runs a main function as the programs do, but in this process."""

    def run(main, *arguments, **keywords):
        argv = ["program", *arguments]
        monkeypatch.delitem(sys.modules, "config_config", raising=False)  # ml_collections runs the next file in it.
        monkeypatch.setattr(sys, "argv", argv)
        # absl's own run also installs its log handler, for good.
        monkeypatch.setattr(cli.app, "run", lambda checked_main, flags_parser: checked_main(flags_parser(argv)))
        verbosity = logging.get_verbosity()
        try:
            with flagsaver.flagsaver():
                if main.__name__ == "main":
                    main()  # Of a program, which calls cli.run.
                else:
                    cli.run(main, __name__, **keywords)
        finally:
            logging.set_verbosity(verbosity)

    return run


@pytest.fixture
def refuse(run_here, tmp_path, capsys):
    """Runs a main function to its error."""

    def run(main, *arguments, **keywords):
        capsys.readouterr()
        before = snapshot(tmp_path)
        with pytest.raises(SystemExit) as caught:
            run_here(main, *arguments, **keywords)
        assert caught.value.code == 2
        assert snapshot(tmp_path) == before
        captured = capsys.readouterr()
        assert captured.out == ""
        return the_error(captured.err)

    return run


@pytest.fixture
def load_main(monkeypatch):
    """The main function of a program; its flags and its handling of Ctrl-C go with the test."""
    known, handler = set(flags.FLAGS), signal.getsignal(signal.SIGINT)

    def load(name):
        monkeypatch.delitem(sys.modules, f"resnet_jax.programs.{name}", raising=False)
        return importlib.import_module(f"resnet_jax.programs.{name}").main

    yield load
    signal.signal(signal.SIGINT, handler)
    for name in set(flags.FLAGS) - known:
        delattr(flags.FLAGS, name)


@pytest.fixture
def weights(tmp_path):
    """Two files of weights for the model of TINY."""
    model = create_model("resnet20", stage_sizes=(1,), width=4)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    rng = np.random.default_rng(0)
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]

    def draw(leaf):
        drawn = rng.normal(0, 0.2, leaf.shape) if len(leaf.shape) > 1 else rng.uniform(0.5, 1.5, leaf.shape)
        return drawn.astype(np.float32)

    for path in paths:
        variables = jax.tree.map(draw, shapes)
        save_torch(variables, path, model=model)
    return [str(path) for path in paths]


@pytest.fixture
def tiny_run(tmp_path):
    config = load_config(QUICKSTART)
    small = {"model.stage_sizes": (1,), "model.width": 4, "steps": 1, "log_every": 1}
    train(override(config, small), tmp_path / "run")
    return str(tmp_path / "run")
