import json
import os
import signal
import threading
import time

import pytest

from resnet_jax.reproduction import running
from resnet_jax.reproduction.experiments import runs
from resnet_jax.reproduction.ledger import read_ledger, record_path, write_record
from resnet_jax.train.signals import Stopped


def perform(name, checkout, **choice):
    return running.perform(name, "smoke", runs(name, "smoke", **choice), checkout.places)


def ledger(checkout):
    return read_ledger(checkout.places.results, "smoke")


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
        "single": {"split": "test", "num_examples": 9, "top1_error": 12.5, "top5_error": 1.5, "loss": 0.5, "step": 12}
    }
    assert record["curves"] == {"train": [[4, 86], [8, 82], [12, 78]], "test": [[12, 50.0]]}
    assert (record["network"], record["seed"], record["images_per_second"]) == ("plain56", 0, 80)
    assert record["commands"]["training"].startswith("python train.py --config configs/plain56_cifar10.py --workdir ")
    assert "--config.data.name=digits" in record["commands"]["training"]
    assert record["environment"]["commit"] == "0123456789abcdef" and "cores" in record["environment"]["processor"]


def test_what_is_done_is_not_done_again_and_what_is_lacking_is_added(checkout):
    perform("fig1", checkout)
    before = len(checkout.called())
    assert perform("fig1", checkout) == {}
    assert len(checkout.called()) == before
    assert perform("fig7", checkout, networks=["plain20"]) == {}
    assert checkout.called()[before:] == ["eval plain20-seed0"]  # For its responses; it is trained.
    record = ledger(checkout)["plain20-seed0"]
    assert record["responses"] == {"stem": 0.5, "stage1_block1/conv1": 1.5}


def test_a_run_that_fails_does_not_lose_the_others_and_can_be_mended(checkout, capfd):
    broken = checkout.places.workdirs / "smoke" / "plain20-seed0.broken"
    broken.parent.mkdir(parents=True)
    broken.touch()
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
    assert ledger(checkout)["table5-ensemble"]["members"] == members
    before = len(checkout.called())
    assert perform("table5", checkout) == {} and len(checkout.called()) == before


def test_an_ensemble_that_lacks_a_member_is_not_scored(checkout):
    broken = checkout.places.workdirs / "smoke" / "resnet50-seed0.broken"
    broken.parent.mkdir(parents=True)
    broken.touch()
    assert list(perform("table5", checkout)) == ["resnet50-seed0", "table5-ensemble"]
    assert "table5-ensemble" not in ledger(checkout)


def test_a_record_of_other_settings_is_left_alone_and_named(checkout, capsys):
    path = record_path(checkout.places.results, "smoke", "plain20-seed0")
    write_record(path, {"overrides": {"steps": 3}, "results": {}})
    failures = perform("fig1", checkout)
    assert "a run with other settings; move it away" in failures["plain20-seed0"]
    assert json.loads(path.read_text())["overrides"] == {"steps": 3}


def test_a_damaged_record_fails_its_run_alone(checkout):
    path = record_path(checkout.places.results, "smoke", "plain20-seed0")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert "is damaged" in perform("fig1", checkout)["plain20-seed0"]
    assert record_path(checkout.places.results, "smoke", "plain56-seed0").exists()


def test_a_signal_reaches_the_program_that_runs_and_ends_the_experiment(checkout):
    folder = checkout.places.workdirs / "smoke"
    folder.mkdir(parents=True)
    (folder / "plain20-seed0.slow").touch()

    def stop():
        while not (folder / "started").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        perform("fig1", checkout)
    thread.join()
    assert stopped.value.signum == signal.SIGTERM and signal.getsignal(signal.SIGTERM) == before
    assert checkout.called() == ["train plain20-seed0"] and ledger(checkout) == {}


def test_experiments_on_photographs_get_digits_that_stand_for_them(checkout):
    assert perform("table2", checkout, networks=["plain18"]) == {}
    photographs = checkout.places.workdirs / "smoke" / "photographs"
    assert len(list(photographs.glob("val/*/*.png"))) == 40 and len(list(photographs.glob("train/*/*.png"))) == 120
