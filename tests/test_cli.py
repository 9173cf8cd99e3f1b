"""Bad input to the programs: exit status 2, one line that names the fault, and no file touched."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from absl import logging
from absl.testing import flagsaver

from resnet_jax import cli
from resnet_jax.evaluation.score import score
from resnet_jax.train.loop import train
from resnet_jax.train.signals import Stopped

ROOT = Path(__file__).resolve().parent.parent
# ml_collections loads the config file in a way that Python is about to drop.
pytestmark = pytest.mark.filterwarnings(r"ignore:the load_module\(\):DeprecationWarning")

QUICKSTART = str(ROOT / "configs" / "quickstart.py")


def snapshot(folder):
    every = sorted(folder.rglob("*"))
    return [(path, path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None) for path in every]


def the_error(stderr):
    """The one ``error: `` line, which is also all there is."""
    (line,) = stderr.splitlines()
    assert line.startswith("error: ")
    return line


def run_program(program, *arguments, cwd, devices=1):
    """Runs train.py or eval.py as a user would, to its error."""
    variables = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    variables |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    before = snapshot(cwd)
    result = subprocess.run(
        [sys.executable, str(ROOT / program), *arguments],
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert snapshot(cwd) == before
    return the_error(result.stderr)


def test_train_names_an_unknown_key_and_the_nearest_one(tmp_path):
    error = run_program(
        "train.py", "--config", QUICKSTART, "--workdir", "run", "--config.optimizer.learning_rat=1", cwd=tmp_path
    )
    assert "config.optimizer.learning_rat;" in error and "did you mean config.optimizer.learning_rate?" in error


def test_train_names_a_batch_that_the_devices_cannot_share(tmp_path):
    error = run_program(
        "train.py", "--config", QUICKSTART, "--workdir", "run", "--config.batch_size=60", cwd=tmp_path, devices=8
    )
    assert "config.batch_size 60 is not divisible by the 8 devices" in error


def test_train_needs_a_workdir(tmp_path):
    assert "--workdir" in run_program("train.py", "--config", QUICKSTART, cwd=tmp_path)


def test_eval_names_a_workdir_without_a_run(tmp_path):
    error = run_program("eval.py", "--config", QUICKSTART, "--workdir", "nothing", cwd=tmp_path)
    assert "there is no run in nothing" in error


@pytest.fixture
def run_here(monkeypatch):
    """Runs a main function as the programs do, but in this process."""

    def run(main, *arguments):
        argv = ["program", *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        # absl's own run also installs its log handler, for good.
        monkeypatch.setattr(cli.app, "run", lambda checked_main, flags_parser: checked_main(flags_parser(argv)))
        verbosity = logging.get_verbosity()
        try:
            with flagsaver.flagsaver():
                cli.run(main)
        finally:
            logging.set_verbosity(verbosity)

    return run


@pytest.fixture
def refuse(run_here, tmp_path, capsys):
    """Runs a main function to its error."""

    def run(main, *arguments):
        capsys.readouterr()
        before = snapshot(tmp_path)
        with pytest.raises(SystemExit) as caught:
            run_here(main, *arguments)
        assert caught.value.code == 2
        assert snapshot(tmp_path) == before
        captured = capsys.readouterr()
        assert captured.out == ""
        return the_error(captured.err)

    return run


@pytest.fixture
def train_main(tmp_path):
    return lambda config: train(config, tmp_path / "run")


def never(config):
    raise AssertionError("main was called")


@pytest.mark.parametrize("flags", [["--config", "{}"], ["--config={}"]])
def test_a_missing_config_file_is_named(refuse, tmp_path, flags):
    path = str(tmp_path / "no_such.py")
    assert f"there is no config file {path}" in refuse(never, *(flag.format(path) for flag in flags))


def test_no_config_is_named(refuse):
    assert "--config is missing" in refuse(never)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("def get_config(:\n", "SyntaxError"),
        ("import no_such_module\n", "no_such_module"),
        ("x = 1\n", "get_config"),
        ("def get_config():\n    return 1 / 0\n", "line 2: ZeroDivisionError"),
        ("def get_config():\n    raise ValueError('first\\n\\nerror: second')\n", "line 2: ValueError: first"),
        ("def get_config():\n    pass\n", "None"),
    ],
)
def test_a_broken_config_file_is_named_with_its_fault(refuse, tmp_path, text, fault):
    path = tmp_path / "broken.py"
    path.write_text(text)
    error = refuse(never, "--config", str(path))
    assert "broken.py" in error and fault in error


def test_a_broken_config_file_is_named_with_its_line_also_by_a_relative_path(refuse, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("def get_config():\n    return 1 / 0\n")
    monkeypatch.chdir(tmp_path)
    assert "broken.py, line 2: ZeroDivisionError" in refuse(never, "--config", "broken.py")


@pytest.mark.parametrize(
    ("flag", "fault"),
    [
        ("--config.steps=many", "many"),
        ("--config.batch_size=0.5", "0.5"),
        ("--config.data.flip=perhaps", "perhaps"),
        ("--config.model=3", "config.model"),
        ("--config.stepz=3", "config.stepz; did you mean config.steps?"),
        ("--config.optimiser.momentum=0", "config.optimiser.momentum; did you mean config.optimizer.momentum?"),
        ("--no_such_flag=3", "no_such_flag"),
        ("stray", "unexpected argument 'stray'"),
    ],
)
def test_a_wrong_argument_is_named(refuse, flag, fault):
    assert fault in refuse(never, "--config", QUICKSTART, flag)


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--config.model.name=resnet21"], "unknown model 'resnet21'; did you mean"),
        (["--config.model.shortcut=D"], "shortcut is 'D'"),
        (["--config.model.dtype=float16"], "dtype is 'float16'"),
        (["--config.data.name=svhn"], "config.data.name is 'svhn'"),
        (["--config.data.holdout=1437"], "config.data.holdout is 1437"),
        (["--config.data.normalization=none"], "config.data.normalization is 'none'"),
        (["--config.data.normalization=channel", "--config.data.mean=('a', 'b', 'c')"], "config.data.mean"),
        (["--config.schedule.name=linear"], "config.schedule.name is 'linear'"),
        (["--config.schedule.name=step", "--config.schedule.boundaries=('a',)"], "config.schedule.boundaries"),
        (["--config.optimizer.decay=none"], "config.optimizer.decay is 'none'"),
        (
            ["--config.eval_every=75", "--config.steps_per_dispatch=50"],
            "config.eval_every 75 is not a multiple of config.steps_per_dispatch 50",
        ),
        (["--config.data.std=(1.0, 1.0, 1.0)"], "config.data.std is set but not read"),
    ],
)
def test_a_wrong_value_is_named_and_no_workdir_made(refuse, train_main, flags, fault):
    assert fault in refuse(train_main, "--config", QUICKSTART, *flags)


def test_a_data_set_that_is_not_prepared_is_named_with_the_command(refuse, train_main, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)  # No TensorFlow here.
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    error = refuse(train_main, "--config", str(ROOT / "configs" / "resnet20_cifar10.py"))
    assert f"python -m resnet_jax.data.prepare cifar10 --data_dir {tmp_path / 'tfds'}" in error


def test_a_workdir_that_cannot_be_made_is_named(refuse, tmp_path):
    # Below a file and not in a read-only folder: to root every folder is writable.
    (tmp_path / "file").write_text("something of the user's")
    workdir = tmp_path / "file" / "run"
    error = refuse(
        lambda config: train(config, workdir),
        "--config",
        QUICKSTART,
        "--config.model.stage_sizes=(1,)",
        "--config.model.width=4",
    )
    assert f"cannot write to workdir {workdir}" in error


def test_a_score_needs_exactly_one_source_of_weights(refuse, tmp_path):
    arguments = ("--config", QUICKSTART)
    assert "give either --workdir or --torch_weights" in refuse(lambda config: score(config), *arguments)
    both = tmp_path / "run", tmp_path / "weights.pth"
    assert "give either --workdir or --torch_weights" in refuse(lambda config: score(config, *both), *arguments)


def test_a_score_of_weights_that_are_not_there_names_the_file(refuse, tmp_path):
    path = tmp_path / "weights.pth"
    assert str(path) in refuse(lambda config: score(config, None, path), "--config", QUICKSTART)


def test_a_score_of_a_split_that_is_not_there_names_it(refuse, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    main = lambda config: score(config, tmp_path / "run", split="validation")  # noqa: E731
    assert "there is no split 'validation'" in refuse(main, "--config", QUICKSTART)


def test_a_score_of_a_run_that_never_saved_says_so(refuse, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    error = refuse(lambda config: score(config, tmp_path / "run"), "--config", QUICKSTART)
    assert f"there is no latest checkpoint in {tmp_path / 'run'}" in error


def test_a_run_that_a_signal_stopped_ends_with_the_status_of_the_signal(run_here, capsys):
    def stopped(config):
        raise Stopped(signal.SIGTERM, 7)

    with pytest.raises(SystemExit) as caught:
        run_here(stopped, "--config", QUICKSTART)
    assert caught.value.code == 128 + signal.SIGTERM
    assert "SIGTERM at step 7" in capsys.readouterr().err


def test_a_fault_of_our_own_keeps_its_traceback(run_here):
    def broken(config):
        raise ValueError("not the user's fault")

    with pytest.raises(ValueError, match="not the user's fault"):
        run_here(broken, "--config", QUICKSTART)


def test_overrides_reach_the_program(run_here):
    configs = []
    run_here(configs.append, "--config", QUICKSTART, "--config.steps=7", "--config.model.stage_sizes=(2, 1)")
    assert (configs[0].steps, configs[0].model.stage_sizes) == (7, (2, 1))
