"""Processes started as one job on this host: their statuses, and the signals that they are sent."""

import signal
import subprocess
import sys
import time

import pytest

# Says its number and what it was sent, and ends with its own status. A first argument is the folder to write to.
CHILD = """
import pathlib, signal, sys, time
folder, number = pathlib.Path(sys.argv[1]), sys.argv[-1].partition("=")[2]
def end(signum, frame):
    (folder / f"{number}.told").write_text(str(signum))
    sys.exit(10 + int(number))
for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(signum, end)
(folder / f"{number}.begun").touch()
time.sleep(60)
"""


def launched(count, program, folder, before=""):
    command = [sys.executable, "-c", program, str(folder)]
    code = f"{before}\nfrom resnet_jax.launch import launch\nlaunch({count}, {command!r})"
    return subprocess.Popen([sys.executable, "-c", code])


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_goes_to_all(tmp_path, signum):
    job = launched(2, CHILD, tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("*.begun"))) == 2)
    job.send_signal(signum)
    assert job.wait(30) in (10, 11)
    assert [(tmp_path / f"{number}.told").read_text() for number in (0, 1)] == [str(int(signum))] * 2


def test_a_hang_up_that_is_ignored_stays_ignored(tmp_path):
    before = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)"
    job = launched(2, CHILD, tmp_path, before)
    wait_for(lambda: len(list(tmp_path.glob("*.begun"))) == 2)
    job.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert job.poll() is None and not list(tmp_path.glob("*.told"))
    job.terminate()
    job.wait(30)


def test_a_signal_while_they_are_started_reaches_those_that_were_and_no_more_come(tmp_path):
    before = f"""
import os, pathlib, signal, subprocess, time
begin = subprocess.Popen
def slow(*arguments, **options):
    process = begin(*arguments, **options)
    while not pathlib.Path({str(tmp_path)!r}, "0.begun").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
    return process
subprocess.Popen = slow
"""
    assert launched(2, CHILD, tmp_path, before).wait(30) == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.begun", "0.told"]


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("", 0),
        ("import sys; sys.exit(3 if sys.argv[-1] == '--process_id=1' else 0)", 3),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL),
    ],
)
def test_the_status_is_that_of_the_first_that_failed(tmp_path, program, status):
    assert launched(2, program, tmp_path).wait(30) == status


def test_each_has_a_number_and_a_device_of_its_own(tmp_path):
    program = """
import os, pathlib, sys
(pathlib.Path(sys.argv[1]) / sys.argv[-1]).write_text(" ".join([os.environ["JAX_LOCAL_DEVICE_IDS"], *sys.argv[2:4]]))
"""
    assert launched(2, program, tmp_path).wait(30) == 0
    told = [(tmp_path / f"--process_id={number}").read_text().split() for number in (0, 1)]
    assert [words[0] for words in told] == ["0", "1"]
    assert told[0][1:] == told[1][1:] and told[0][1].startswith("--coordinator_address=localhost:")
    assert told[0][2] == "--num_processes=2"
