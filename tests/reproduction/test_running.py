import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from reproduction import running
from reproduction.experiments import EXPERIMENTS, runs
from reproduction.ledger import read_ledger, read_record, record_path, write_record
from reproduction.numerics import numerics_hash
from resnet_jax.errors import UserError
from resnet_jax.train.signals import Stopped

ROOT = Path(__file__).resolve().parent.parent.parent


def perform(name, checkout, **choice):
    return running.perform(name, "smoke", runs(name, "smoke", **choice), checkout.places)


def ledger(checkout):
    return read_ledger(checkout.places.results, "smoke", lambda record: True)


def flag(checkout, name):
    """A file that tells the fake programs what to do."""
    path = checkout.places.workdirs / "smoke" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_each_run_is_trained_and_scored_and_recorded(checkout):
    assert perform("fig1", checkout) == {}
    assert checkout.called() == [
        "train plain20-seed0",
        "eval plain20-seed0",
        "train plain56-seed0",
        "eval plain56-seed0",
    ]
    record = ledger(checkout)["plain56-seed0"]
    assert record["results"] == {
        "single": {
            **{"split": "test", "num_examples": 9, "top1_error": 12.5, "top5_error": 1.5, "loss": 0.5, "step": 8},
            "numerics": numerics_hash(checkout.places.root),
        }
    }
    assert record["numerics"] == [numerics_hash(checkout.places.root)]
    assert record["learning_rates"] == [[4, 0.1], [12, 0.01]]
    assert record["curves"] == {"train": [[4, 86], [8, 82], [12, 78]], "test": [[12, 50.0]]}
    assert (record["network"], record["seed"], record["images_per_second"]) == ("plain56", 0, 80)
    assert record["commands"]["training"].startswith("python train.py --config configs/cifar10.py:plain56 --workdir ")
    assert "--config.data.name=digits" in record["commands"]["training"]
    assert (record["environment"]["commit"], record["environment"]["processor"]) == ("0123456789abcdef", "2 cores of X")
    assert str(checkout.places.workdirs) not in json.dumps(record)


def test_what_is_done_is_not_done_again_and_what_is_lacking_is_added(checkout):
    perform("fig1", checkout)
    before = len(checkout.called())
    assert perform("fig1", checkout) == {}
    assert len(checkout.called()) == before
    assert perform("fig7", checkout, networks=["plain20"]) == {}
    assert checkout.called()[before:] == ["eval plain20-seed0"]  # For its responses; it is trained.
    record = ledger(checkout)["plain20-seed0"]
    assert record["responses"] == {"stem": 0.5, "stage1_block1/conv1": 1.5}


def test_a_run_that_fails_does_not_lose_the_others_and_can_be_fixed(checkout, capfd):
    broken = flag(checkout, "plain20-seed0.broken")
    failures = perform("fig1", checkout)
    assert list(failures) == ["plain20-seed0"] and list(ledger(checkout)) == ["plain56-seed0"]
    assert "error: broken" in capfd.readouterr().err
    broken.unlink()
    assert perform("fig1", checkout) == {}
    assert list(ledger(checkout)) == ["plain20-seed0", "plain56-seed0"]


def test_an_ensemble_is_scored_of_all_its_members(checkout):
    assert perform("table5", checkout) == {}
    members = ["resnet34-seed0", "resnet34c-seed0", "resnet50-seed0", "resnet101-seed0", "resnet152-seed0"]
    members.append("resnet152-seed1")
    assert checkout.called()[-1] == f"eval {' '.join(members)}"
    assert ledger(checkout)["table5-ensemble"]["members"] == dict.fromkeys(members, 0.5)
    before = len(checkout.called())
    assert perform("table5", checkout) == {} and len(checkout.called()) == before


def test_an_ensemble_that_lacks_a_member_is_not_scored(checkout):
    flag(checkout, "resnet50-seed0.broken")
    assert list(perform("table5", checkout)) == ["resnet50-seed0", "table5-ensemble"]
    assert "table5-ensemble" not in ledger(checkout)


def test_an_ensemble_that_fails_is_named_and_scored_the_next_time(checkout):
    broken = flag(checkout, "eval.broken")
    assert list(perform("table5", checkout)) == ["table5-ensemble"]
    broken.unlink()
    assert perform("table5", checkout) == {} and "table5-ensemble" in ledger(checkout)


def test_an_ensemble_is_scored_anew_when_a_member_has_been(checkout):
    perform("table5", checkout)
    path = record_path(checkout.places.results, "smoke", "resnet50-seed0")
    record = json.loads(path.read_text())
    record["results"]["multi_scale"]["loss"] = 0.25
    write_record(path, record)
    before = len(checkout.called())
    assert perform("table5", checkout) == {} and len(checkout.called()) == before + 1
    assert ledger(checkout)["table5-ensemble"]["members"]["resnet50-seed0"] == 0.25


def test_a_record_of_other_settings_is_left_alone_and_named(checkout):
    perform("fig1", checkout, networks=["plain20"])
    path = record_path(checkout.places.results, "smoke", "plain20-seed0")
    record = json.loads(path.read_text())
    record["values"]["steps"] = 3
    write_record(path, record)
    failures = perform("fig1", checkout)
    assert "a run with other settings; move it away" in failures["plain20-seed0"]
    assert json.loads(path.read_text()) == record


def test_a_key_that_is_newer_than_a_record_had_its_default(checkout):
    perform("fig1", checkout, networks=["plain20"])
    path = record_path(checkout.places.results, "smoke", "plain20-seed0")
    record = json.loads(path.read_text())
    del record["values"]["ema_decay"]
    write_record(path, record)
    before = len(checkout.called())
    assert perform("fig1", checkout, networks=["plain20"]) == {} and len(checkout.called()) == before


def test_a_key_that_a_record_has_and_no_config_any_more_makes_it_another_run(checkout):
    perform("fig1", checkout, networks=["plain20"])
    path = record_path(checkout.places.results, "smoke", "plain20-seed0")
    record = json.loads(path.read_text())
    record["values"]["model.no_such_key"] = 1
    write_record(path, record)
    assert "a run with other settings" in perform("fig1", checkout)["plain20-seed0"]


def test_a_run_resumed_with_other_code_names_both(checkout):
    stopped = flag(checkout, "plain20-seed0.stopped")
    with pytest.raises(Stopped):
        perform("fig1", checkout, networks=["plain20"])
    before = numerics_hash(checkout.places.root)
    stopped.unlink()
    (checkout.places.root / "resnet_jax" / "models" / "net.py").write_text("DEPTH = 56\n")
    numerics_hash.cache_clear()
    assert perform("fig1", checkout, networks=["plain20"]) == {}
    now = numerics_hash(checkout.places.root)
    record = ledger(checkout)["plain20-seed0"]
    assert before != now and record["numerics"] == [before, now]
    assert record["results"]["single"]["numerics"] == now


def test_a_record_whose_workdir_is_gone_is_trained_again_before_more_is_scored(checkout):
    perform("fig1", checkout, networks=["plain20"])
    shutil.rmtree(checkout.places.workdirs)
    assert perform("fig7", checkout, networks=["plain20"]) == {}
    assert checkout.called()[2:] == ["train plain20-seed0", "eval plain20-seed0"]


def test_a_half_trained_network_is_trained_on_and_not_scored_as_a_finished_one(checkout):
    perform("fig1", checkout, networks=["plain20"])
    checkpoints = checkout.places.workdirs / "smoke" / "plain20-seed0" / "checkpoints"
    (checkpoints / "8").rename(checkpoints / "4")
    assert perform("fig7", checkout, networks=["plain20"]) == {}
    assert checkout.called()[2] == "train plain20-seed0"
    assert ledger(checkout)["plain20-seed0"]["results"]["single"]["step"] == 8


def test_scores_of_another_training_are_not_kept(checkout):
    perform("fig1", checkout, networks=["plain20"])
    path = record_path(checkout.places.results, "smoke", "plain20-seed0")
    record = json.loads(path.read_text())
    record["curves"]["train"][0][1] = 1.0
    record["results"]["ten_crop"] = record["results"].pop("single")
    write_record(path, record)
    perform("fig1", checkout, networks=["plain20"])
    assert list(ledger(checkout)["plain20-seed0"]["results"]) == ["single"]


def test_a_damaged_workdir_fails_its_run_alone(checkout):
    perform("fig1", checkout, networks=["plain20"])
    record_path(checkout.places.results, "smoke", "plain20-seed0").unlink()
    train = checkout.places.root / "train.py"
    train.write_text(train.read_text() + '\nif "20" in workdir.name: (workdir / "environment.json").write_text("{")\n')
    failures = perform("fig1", checkout)
    assert list(failures) == ["plain20-seed0"] and "is damaged" in failures["plain20-seed0"]
    assert list(ledger(checkout)) == ["plain56-seed0"]


def test_a_damaged_record_fails_its_run_alone(checkout):
    path = record_path(checkout.places.results, "smoke", "plain20-seed0")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert "is damaged" in perform("fig1", checkout)["plain20-seed0"]
    assert record_path(checkout.places.results, "smoke", "plain56-seed0").exists()


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_the_program_that_runs_and_ends_the_experiment(checkout, signum):
    started = flag(checkout, "plain20-seed0.slow").parent / "started"

    def stop():
        deadline = time.monotonic() + 60
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        if started.exists():
            os.kill(os.getpid(), signum)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    before = signal.getsignal(signum)
    with pytest.raises(Stopped) as stopped:
        perform("fig1", checkout)
    thread.join()
    assert stopped.value.signum == signum and signal.getsignal(signum) == before
    assert checkout.called() == ["train plain20-seed0"] and ledger(checkout) == {}


def test_several_runs_at_a_time_give_the_same_records(checkout):
    chosen = runs("fig6", "smoke")
    assert running.perform("fig6", "smoke", chosen, checkout.places, jobs=3) == {}
    assert sorted(ledger(checkout)) == sorted(run.name for run in chosen)
    assert len(checkout.called()) == 2 * len(chosen)


def test_more_steps_in_a_call_are_the_same_run(checkout):
    places = checkout.places._replace(steps_per_dispatch=2)
    (chosen,) = runs("fig1", "smoke", networks=["plain20"])
    assert running.perform("fig1", "smoke", [chosen], places) == {}
    record = ledger(checkout)["plain20-seed0"]
    assert "--config.steps_per_dispatch=2" in record["commands"]["training"]
    assert "steps_per_dispatch" not in record["commands"]["single"] and "steps_per_dispatch" not in record["values"]
    assert running.lacking(EXPERIMENTS["fig1"], "smoke", chosen, checkout.places) == ("nothing", record)


def test_steps_in_a_call_that_no_run_of_the_scale_can_have_are_refused_beforehand(checkout):
    places = checkout.places._replace(steps_per_dispatch=3)
    with pytest.raises(UserError, match="=3 does not divide all intervals of plain20-seed0 at smoke scale; give 2, or"):
        running.perform("fig1", "smoke", runs("fig1", "smoke"), places)
    assert checkout.called() == []


def test_a_program_that_somebody_else_stopped_ends_the_experiment_too(checkout):
    flag(checkout, "plain20-seed0.stopped")
    with pytest.raises(Stopped):
        perform("fig1", checkout)
    assert checkout.called() == ["train plain20-seed0"]


def test_experiments_on_photographs_get_digits_that_stand_for_them(checkout):
    assert perform("table2", checkout, networks=["plain18"]) == {}
    photographs = checkout.places.workdirs / "smoke" / "photographs"
    assert ledger(checkout)["plain18-seed0"]["commands"]["training"].endswith("--config.data_dir=DIR")
    assert len(list(photographs.glob("val/*/*.png"))) == 40 and len(list(photographs.glob("train/*/*.png"))) == 120


@pytest.mark.slow
def test_a_smoke_run_really_trains_and_scores_and_reports(tmp_path):
    arguments = ["--scale=smoke", f"--runs={tmp_path / 'runs'}", f"--results={tmp_path / 'results'}"]
    call = [sys.executable, str(ROOT / "reproduce.py"), "fig7", "--networks=plain20,resnet20", *arguments]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| ResNet-20 | 7 |" in done.stdout and "Smoke scale" in done.stdout
    record = read_record(tmp_path / "results" / "smoke" / "resnet20-seed0.json")
    assert len(record["responses"]) == 7 and record["numerics"] == [numerics_hash(ROOT)]
    assert running.is_current(ROOT, "smoke", record)
    assert (tmp_path / "results" / "smoke" / "report.html").read_text().count("<figure>") == 3  # 1, 6 and 7.
