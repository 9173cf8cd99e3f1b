"""Configs, flags and faults of any program. Bad input: status 2, one line that names the fault, and no file touched."""

import importlib.util
import os
import signal
import subprocess
import sys

import jax
import pytest

from resnet_jax import distributed
from resnet_jax.config import load_config
from resnet_jax.experiment.training import train
from resnet_jax.programs import cli
from resnet_jax.train.signals import Stopped
from tests.programs.program_calls import QUICKSTART, ROOT, snapshot, the_error


def run_program(program, *arguments, cwd, devices=1):
    """Runs train.py, eval.py or predict.py as a user would, to its error."""
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


@pytest.mark.extensive
def test_train_names_an_unknown_key_and_the_nearest_one(tmp_path):
    error = run_program(
        "train.py", "--config", QUICKSTART, "--workdir", "run", "--config.optimizer.learning_rat=1", cwd=tmp_path
    )
    assert "config.optimizer.learning_rat;" in error and "did you mean config.optimizer.learning_rate?" in error


@pytest.mark.extensive
def test_train_names_a_batch_that_the_devices_cannot_share(tmp_path):
    error = run_program(
        "train.py", "--config", QUICKSTART, "--workdir", "run", "--config.batch_size=60", cwd=tmp_path, devices=8
    )
    assert "config.batch_size 60 is not divisible by the 8 devices" in error


def test_train_needs_a_workdir(tmp_path):
    assert "--workdir" in run_program("train.py", "--config", QUICKSTART, cwd=tmp_path)


@pytest.mark.extensive
def test_eval_names_a_workdir_without_a_run(tmp_path):
    error = run_program("eval.py", "--config", QUICKSTART, "--workdir", "nothing", cwd=tmp_path)
    assert "there is no run in nothing" in error


@pytest.mark.extensive
def test_predict_names_a_photograph_that_is_not_there(tmp_path):
    error = run_program("predict.py", "--config", QUICKSTART, "--workdir", "run", "cat.jpg", cwd=tmp_path)
    assert "there is no file or folder cat.jpg" in error


@pytest.fixture
def train_main(tmp_path):
    return lambda config: train(config, tmp_path / "run")


def never(config):
    raise AssertionError("main was called")


@pytest.mark.parametrize("flags", [["--config", "{}"], ["--config={}"]])
def test_a_missing_config_file_is_named(refuse, tmp_path, flags):
    path = str(tmp_path / "no_such.py")
    assert f"there is no config file {path}" in refuse(never, *(flag.format(path) for flag in flags))


@pytest.mark.parametrize("path", ["quickstart.py", "quickstart", "configs/quickstart.py"])
def test_a_recipe_that_comes_along_is_found_from_any_folder(run_here, refuse, monkeypatch, tmp_path, path):
    monkeypatch.chdir(tmp_path)
    found = []
    run_here(lambda config: found.append(config), "--config", path)
    assert found == [load_config(QUICKSTART)]
    # Not from a folder that was mistyped.
    assert f"there is no config file other/{path}" in refuse(never, "--config", f"other/{path}")


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
        (
            "from resnet_jax.config import Config\ndef get_config():\n    return Config(steps=-1)\n",
            "line 3: config.steps is -1; it must be 0 or above",
        ),
    ],
)
def test_a_broken_config_file_is_named_with_its_fault(refuse, tmp_path, text, fault):
    path = tmp_path / "broken.py"
    path.write_text(text)
    error = refuse(never, "--config", str(path))
    assert "broken.py" in error and fault in error


@pytest.mark.parametrize(
    "config, said",
    [
        ("quickstart.py:foo", "quickstart.py has no members; leave :foo out"),
        ("resnet_strikes_back.py:a4", "there is no member 'a4'; name one of a1, a2, a3"),
        ("finetune.py:resnet51", "unknown model 'resnet51'; did you mean 'resnet"),
    ],
)
def test_a_member_that_is_not_there_is_no_fault_of_the_file(refuse, config, said):
    error = refuse(never, "--config", str(ROOT / "configs" / config))
    assert said in error and "fix the file" not in error


def test_a_path_that_no_file_can_have_is_named(refuse, tmp_path_factory):
    loop = tmp_path_factory.mktemp("configs") / "loop.py"
    loop.symlink_to(loop)
    for path in ("a" * 300 + ".py", str(loop)):
        assert f"there is no config file {path}" in refuse(never, "--config", path)


def test_a_process_that_was_started_as_one_of_several_starts_none(run_here, refuse, monkeypatch, tmp_path):
    (tmp_path / "flags").write_text("--local_processes=3\n")
    started, joined = [], []
    monkeypatch.setattr(cli, "launch", lambda count, command: started.append(count))
    monkeypatch.setattr(distributed, "start", lambda *job: joined.append(job[:3]))
    given = ["--config", QUICKSTART, f"--flagfile={tmp_path / 'flags'}"]
    run_here(lambda config: None, *given)
    assert (started, joined) == ([3], [])
    job = ["--coordinator_address=h:1", "--num_processes=3", "--process_id=0"]
    assert "--local_processes starts a job of its own" in refuse(never, *given, *job)
    monkeypatch.setenv("RESNET_JAX_LAUNCHED", "1")
    run_here(lambda config: None, *given, *job)
    assert (started, joined) == ([3], [("h:1", 3, 0)])


def test_closed_streams_are_no_fault(run_here, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    run_here(lambda config: print(sys.stderr.isatty(), file=sys.stderr), "--config", QUICKSTART)


def test_a_broken_config_file_is_named_with_its_line_also_by_a_relative_path(refuse, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("def get_config():\n    return 1 / 0\n")
    monkeypatch.chdir(tmp_path)
    assert "broken.py, line 2: ZeroDivisionError" in refuse(never, "--config", "broken.py")


@pytest.mark.parametrize(
    ("flag", "fault"),
    [
        ("--config.steps=many", "many"),
        ("--config.batch_size=0.5", "0.5"),
        ("--config.transforms.flip.probability=perhaps", "perhaps"),
        ("--config.model=resnet50", "config.model is a section; set its keys, such as --config.model.name=resnet50"),
        ("--config.transforms=1", "config.transforms is a section; set its keys, such as --config.transforms."),
        ("--config.steps={[]:1}", "config.steps is '{[]:1}'; it must be a number of steps"),
        ("--config.seed=9223372036854775808", "config.seed is 9223372036854775808; it must be below 4294967296"),
        ("--config.stepz=3", "config.stepz; did you mean config.steps?"),
        ("--config.optimiser.momentum=0", "config.optimiser.momentum; did you mean config.optimizer.momentum?"),
        ("--no_such_flag=3", "no_such_flag"),
        ("stray", "unexpected argument 'stray'"),
    ],
)
def test_a_wrong_argument_is_named(refuse, flag, fault):
    assert fault in refuse(never, "--config", QUICKSTART, flag)


@pytest.mark.parametrize(
    ("flag", "fault"),
    [
        ("--start_timeout=soon", "start_timeout"),
        ("--config.steps=4", "--config is missing, whose keys"),
        ("--config", "Missing value for flag --config"),
    ],
)
def test_a_wrong_flag_without_a_config_is_named(refuse, flag, fault):
    assert fault in refuse(never, flag, config_optional=True)


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--config.model.name=resnet21"], "unknown model 'resnet21'; did you mean"),
        (["--config.model.shortcut=D"], "config.model.shortcut is 'D'"),
        (["--config.model.dtype=float16"], "dtype is 'float16'"),
        (["--config.data.name=folder"], "config.data.kind"),
        (["--config.data.holdout=1437"], "config.data.holdout is 1437"),
        (["--config.normalization.name=none"], "config.normalization.name is 'none'"),
        (
            ["--config.normalization.name=channel", "--config.normalization.mean=('a', 'b', 'c')"],
            "config.normalization.mean",
        ),
        (["--config.schedule.name=linear"], "config.schedule.name is 'linear'"),
        (["--config.schedule.name=step", "--config.schedule.boundaries=('a',)"], "config.schedule.boundaries"),
        (["--config.optimizer.decay=none"], "config.optimizer.decay is 'none'"),
        (
            ["--config.eval_every=75", "--config.steps_per_dispatch=50"],
            "config.eval_every 75 is not a multiple of config.steps_per_dispatch 50",
        ),
        (["--config.normalization.std=(1.0, 1.0, 1.0)"], "config.normalization.std is set, but"),
        (["--config.batch_size=1504"], "config.batch_size 1504 is more than the 1437 training images"),
    ],
)
def test_a_wrong_value_is_named_and_no_workdir_made(refuse, train_main, flags, fault):
    assert fault in refuse(train_main, "--config", QUICKSTART, *flags)


def test_a_data_set_that_is_not_prepared_is_named_with_the_command(refuse, train_main, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)  # No TensorFlow here.
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    error = refuse(train_main, "--config", str(ROOT / "configs" / "cifar10.py"))
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


def test_memory_that_is_full_is_named_with_what_lowers_it(refuse):
    def too_large(config):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nAllocations: ...")

    error = refuse(too_large, "--config", QUICKSTART)
    assert "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes." in error and "lower config.batch_size" in error


@pytest.mark.parametrize("flag", ["--local_processes=2", "--num_processes=2", "--distributed"])
@pytest.mark.parametrize("kind", [{"config": False}, {"jobs": False}])
def test_a_program_for_one_process_is_refused_as_one_of_several(refuse, flag, kind):
    assert "this program is for one process" in refuse(never, flag, "image.png", positional="IMAGE", **kind)


def test_overrides_reach_the_program(run_here):
    configs = []
    run_here(configs.append, "--config", QUICKSTART, "--config.steps=7", "--config.model.stage_sizes=(2, 1)")
    assert (configs[0].steps, configs[0].model.stage_sizes) == (7, (2, 1))


def test_the_member_of_a_file_of_recipes_is_chosen_by_name(run_here):
    configs = []
    run_here(configs.append, "--config", f"{ROOT / 'configs' / 'cifar10.py'}:plain56")
    assert configs[0].model.name == "plain56"


def test_another_schedule_is_one_flag_and_its_keys_can_be_set_with_it(run_here):
    configs = []
    recipe = str(ROOT / "configs" / "cifar10.py")
    run_here(configs.append, "--config", recipe, "--config.schedule.name=plateau", "--config.schedule.patience=3")
    assert (configs[0].schedule.name, configs[0].schedule.patience) == ("plateau", 3)


@pytest.mark.parametrize("program", ["train", "evaluate", "predict"])
def test_help_is_printed_and_ends_well(run_here, load_main, program, capsys):
    with pytest.raises(SystemExit) as ended:
        run_here(load_main(program), "--help")
    assert ended.value.code == 0
    assert "--workdir" in capsys.readouterr().out
