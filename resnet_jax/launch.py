"""Several processes on one host as one job."""

import os
import signal
import socket
import subprocess
import sys
import time
from typing import NoReturn

LAUNCHED = "RESNET_JAX_LAUNCHED"  # Set in the environment of the processes that are started.


def launch(count: int, command: list[str]) -> NoReturn:
    """Runs ``command`` ``count`` times as one job on this host, each on its own device of an accelerator, and exits.

    The status is 0, or that of the first process that failed. SIGTERM, SIGINT and SIGHUP go to all; one that comes
    while they are being started keeps the rest from starting.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes: list[subprocess.Popen[bytes]] = []
    told = []

    def forward(signum: int, frame: object) -> None:
        told.append(signum)
        for process in processes:
            if process.poll() is None:
                process.send_signal(signum)

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:  # Under nohup it stays ignored.
            signal.signal(signum, forward)
    for index in range(count):
        own = [f"--coordinator_address={address}", f"--num_processes={count}", f"--process_id={index}"]
        environment = os.environ | {"JAX_LOCAL_DEVICE_IDS": str(index), LAUNCHED: "1"}
        # A session of their own: Ctrl-C comes to them once, from here.
        process = subprocess.Popen([*command, *own], env=environment, start_new_session=True)
        processes.append(process)
        if told:
            process.send_signal(told[0])
            break
    first = 0
    while any(process.poll() is None for process in processes):
        first = first or next((process.returncode for process in processes if process.poll()), 0)
        time.sleep(0.1)
    first = first or next((process.returncode for process in processes if process.returncode), 0)
    sys.exit(first if first >= 0 else 128 - first)
