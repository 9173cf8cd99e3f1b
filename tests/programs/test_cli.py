"""Bad input to the programs: exit status 2, one line that names the fault, and no file touched."""

import csv
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest
from absl import flags, logging
from absl.testing import flagsaver

from resnet_jax.config import load_config, override, read_config
from resnet_jax.experiment.scoring import score
from resnet_jax.experiment.training import train
from resnet_jax.interop.torch_weights import save_torch
from resnet_jax.models import create_model
from resnet_jax.programs import cli
from resnet_jax.train.signals import Stopped

ROOT = Path(__file__).resolve().parent.parent.parent

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
def run_here(monkeypatch):
    """Runs a main function as the programs do, but in this process."""

    def run(main, *arguments, **keywords):
        argv = ["program", *arguments]
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


# With the normalisation that published weights want, or a note would say so.
TINY = (
    *("--config", QUICKSTART, "--config.model.stage_sizes=(1,)", "--config.model.width=4"),
    "--config.normalization.name=channel",
)


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


def test_eval_prints_the_errors_and_keeps_them_and_the_scores(run_here, load_main, weights, tmp_path, capsys):
    a, b = weights
    results, scores = tmp_path / "results.csv", tmp_path / "scores.csv"
    main = load_main("evaluate")
    run_here(main, *TINY, "--torch_weights", a, "--results_csv", str(results), "--scores_csv", str(scores))
    run_here(main, *TINY, f"--torch_weights={a}", f"--torch_weights=resnet20={b}", f"--results_csv={results}")
    text, record, _, ensemble = capsys.readouterr().out.splitlines()
    record, ensemble = json.loads(record), json.loads(ensemble)
    assert text == (
        f"resnet20 on digits test, single: top-1 error {record['top1_error']:.2f} %, "
        f"top-5 error {record['top5_error']:.2f} %, loss {record['loss']:.4f}, 360 examples"
    )
    assert (record["model"], record["data"], record["weights"]) == ("resnet20", "digits", a)
    assert (ensemble["model"], ensemble["weights"]) == ("resnet20 + resnet20", f"{a} + resnet20={b}")
    assert record["loss"] != ensemble["loss"]
    with results.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, result in zip(rows, (record, ensemble), strict=True):
        assert row == {key: "" if value is None else str(value) for key, value in result.items()}
    with scores.open(newline="") as file:
        ranks = [int(row["rank"]) for row in csv.DictReader(file)]
    assert len(ranks) == 360
    assert round(100 * sum(rank > 1 for rank in ranks) / 360, 4) == record["top1_error"]


def test_eval_measures_the_layer_responses_of_any_weights(run_here, load_main, weights, tmp_path):
    path = tmp_path / "responses.csv"
    run_here(load_main("evaluate"), *TINY, f"--torch_weights=resnet20={weights[0]}", f"--responses_csv={path}")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["layer"] for row in rows] == ["stem", "stage1_block1/conv1", "stage1_block1/conv2"]
    assert all(float(row["std"]) > 0 for row in rows) and path.with_suffix(".png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ([], "give a --workdir or --torch_weights, or several for an ensemble"),
        (["--torch_weights=no_such.pth"], "there is no file no_such.pth"),
        (["--torch_weights=resnet18=no_such.pth"], "there is no file no_such.pth"),
        (["--workdir=no_such"], "there is no run in no_such"),
        (["--torch_weights={weights}", "--workdir=no_such"], "there is no run in no_such"),
        (["--torch_weights={weights}", "--split=validation"], "digits has no split 'validation'"),
        (["--torch_weights={weights}", "--protocol=ten_crop"], "ten_crop and multi_scale are for photographs"),
        (["--torch_weights={weights}", "--config.model.width=8"], "a.safetensors does not fit resnet20"),
        (["--torch_weights={weights}", "--config.eval_batch_size=0"], "config.eval_batch_size is 0"),
        (["--torch_weights={weights}", "--split=everything"], "split"),
        (["--torch_weights={weights}", "--protocol=eleven_crop"], "protocol"),
        (["--torch_weights={weights}", "--checkpoint=worst"], "checkpoint"),
        (
            ["--torch_weights={weights}", "--workdir=a", "--responses_csv=r.csv"],
            "give one --workdir or --torch_weights",
        ),
        (["--torch_weights={weights}", "stray.jpg"], "unexpected argument 'stray.jpg'"),
    ],
)
def test_eval_names_what_is_wrong(refuse, load_main, weights, arguments, fault):
    given = [argument.format(weights=weights[0]) for argument in arguments]
    assert fault in refuse(load_main("evaluate"), *TINY, *given)


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
    ],
)
def test_predict_names_what_is_wrong(refuse, load_main, weights, photographs, tmp_path, arguments, fault):
    (tmp_path / "empty").mkdir()
    places = {"weights": weights[0], "image": photographs[0], "folder": tmp_path / "empty"}
    error = refuse(load_main("predict"), *TINY, *(argument.format(**places) for argument in arguments))
    assert fault.format(**places) in error


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


@pytest.fixture
def tiny_run(tmp_path):
    config = load_config(QUICKSTART)
    small = {"model.stage_sizes": (1,), "model.width": 4, "steps": 1, "log_every": 1}
    train(override(config, small), tmp_path / "run")
    return str(tmp_path / "run")


def test_eval_takes_the_config_from_the_workdir_alone(run_here, load_main, tiny_run, capsys):
    run_here(load_main("evaluate"), "--workdir", tiny_run)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_examples"] == 360


def test_predict_takes_the_config_from_the_workdir_alone(run_here, load_main, tiny_run, photographs, capsys):
    run_here(load_main("predict"), "--workdir", tiny_run, photographs[0])
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_an_exported_run_is_scored_as_the_run_and_fine_tuned_from(run_here, load_main, tiny_run, tmp_path):
    folder = str(tmp_path / "exported")
    run_here(load_main("export"), "--workdir", tiny_run, folder)
    small, start = read_config(Path(folder) / "config.json"), {"name": "weights", "path": folder, "head": "keep"}
    scores = [score(small, [Path(workdir)]).record for workdir in (tiny_run, folder)]
    for record in scores:
        del record["weights"], record["seconds"]
    assert scores[0] == scores[1]
    train(override(small, {f"init.{key}": value for key, value in start.items()}), tmp_path / "tuned")
    assert json.loads((tmp_path / "tuned" / "init.json").read_text())["kind"] == "workdir"


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ([], "FOLDER is missing"),
        (["{out}"], "--workdir is missing"),
        (["--workdir={run}", "{out}", "more"], "unexpected argument 'more'"),
        (["--workdir=no_such", "{out}"], "there is no run in no_such"),
    ],
)
def test_export_names_what_is_wrong(refuse, load_main, tmp_path, arguments, fault):
    places = {"run": tmp_path, "out": tmp_path / "out"}
    assert fault in refuse(load_main("export"), *(argument.format(**places) for argument in arguments))
