"""What signals do to a run, in a program of its own."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from resnet_jax.train.signals import stop_signals


def test_the_first_signal_is_told_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals() as told:
        assert told() is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert told() == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_of_the_main_thread_there_are_no_signals():
    said = []

    def run():
        with stop_signals() as told:
            said.append(told())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert said == [None]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.extensive
def test_a_second_signal_ends_the_program_while_it_is_deep_in_another_language(signum):
    program = """
import ctypes, time
from resnet_jax.train.signals import stop_signals
with stop_signals() as told:
    print("ready", flush=True)
    while told() is None:
        time.sleep(0.01)
    print("told", flush=True)
    for _ in range(10):  # As in a long compilation Python's handlers do not get to run.
        ctypes.CDLL(None).sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for word in ("ready", "told"):
        assert process.stdout.readline().strip() == word
        process.send_signal(signum)
    time.sleep(0.3)
    assert process.poll() is None  # The same signal, from two senders.
    time.sleep(1)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signum
    assert "saving after this step" in errors and "ended without saving; the last checkpoint is kept" in errors
