"""Several processes as one job: they join, compare what they are about to do, and notice when one of them is gone.

Everything goes through the key-value store of JAX's coordination service, which process 0 hosts. Each process has a
thread that writes a sign of life there and reads those of the others, because JAX's own check ends a process with a
dump of its stacks. All functions do nothing, or the obvious, in a job of one process.
"""

import ctypes
import hashlib
import json
import math
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax._src import distributed as jax_distributed  # Its client, which has no public name.

from resnet_jax.errors import UserError, one_line

LOST = 75  # Exit status when another process is gone: EX_TEMPFAIL of sysexits.h, for "try again".
ADDRESS_KEYS = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


class _Job:
    """This process's part in a job of several.

    heard: by process, when it last gave a new sign of life. points: how often ``stopping`` was called.
    """

    def __init__(self, client: Any, coordinator: str, index: int, count: int, lost_after: float) -> None:
        self.client, self.coordinator, self.index, self.count = client, coordinator, index, count
        self.lost_after = lost_after
        # Reading everybody's sign of life takes time in proportion to their number, on the one process that serves it.
        self.interval = max(min(1.0, lost_after / 5), count / 64)
        self.hosts = [f"process {number}" for number in range(count)]
        now = time.monotonic()
        self.heard = dict.fromkeys(range(count), now)
        self.rounds: dict[str, int] = {}
        self.ended = threading.Event()
        self.ending = threading.Lock()  # Held for good by whoever reports why this process ends.
        self.stop_signal: int | None = None
        self.points, self.stop_point = 0, None  # type: int, int | None
        self.stop_known = threading.Condition()
        self.stop_published = False


_job: _Job | None = None


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    start_timeout: float = 300,
    lost_after: float = 60,
) -> None:
    """Joins this process to a job. Call once, before anything else touches a device.

    What is not given comes from JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID,
    else from JAX's detection of Cloud TPU, Slurm, Open MPI and Kubernetes. Raises UserError where that is not enough.

    When not all have come after ``start_timeout`` seconds, or when one is silent for ``lost_after`` seconds, this
    process ends with a line on stderr and the status ``LOST``.
    """
    global _job
    given = (coordinator, num_processes, process_id)
    coordinator, num_processes, process_id = _addresses(*given)
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"the coordinator's address is {coordinator!r}; give HOST:PORT of process 0")
    if not math.isfinite(start_timeout + lost_after):
        raise UserError(f"start_timeout {start_timeout} and lost_after {lost_after} must be finite numbers of seconds")
    overdue = threading.Timer(start_timeout, _overdue, (start_timeout,))
    overdue.daemon = True
    overdue.start()
    jax.config.update("jax_enable_preemption_service", False)  # It keeps a second signal from ending the process.
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            # JAX's own limits come after ours.
            initialization_timeout=int(start_timeout) + 60,
            heartbeat_timeout_seconds=2 * int(lost_after) + 60,
            shutdown_timeout_seconds=10,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--distributed could not join the other processes ({one_line(error)}); give --coordinator_address, "
            f"--num_processes and --process_id, or set {', '.join(ADDRESS_KEYS)}"
        ) from None
    finally:
        overdue.cancel()
    state = jax_distributed.global_state
    if state.num_processes == 1:
        return
    address = str(state.coordinator_address)
    _job = _Job(state.client, address, state.process_id, state.num_processes, lost_after)
    _report_aborts(_job)
    threading.Thread(target=_talk, args=(_job,), daemon=True).start()
    threading.Thread(target=_watch, args=(_job,), daemon=True).start()
    _job.hosts = [
        f"process {number} ({name})"
        for number, name in enumerate(exchange("host", f"{socket.gethostname()}, pid {os.getpid()}"))
    ]


def _addresses(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> tuple[str | None, int | None, int | None]:
    flags = {"--coordinator_address": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    missing = [flag for flag, value in flags.items() if value is None]
    if 0 < len(missing) < len(flags):
        raise UserError(f"{' and '.join(missing)} missing; give all of {', '.join(flags)}, or none")
    if not missing:
        return coordinator, num_processes, process_id
    found = [key for key in ADDRESS_KEYS if key in os.environ]
    if found and len(found) < len(ADDRESS_KEYS):
        missing = [key for key in ADDRESS_KEYS if key not in found]
        raise UserError(f"--distributed found {', '.join(found)} but not {', '.join(missing)}; set all three or none")
    if not found:
        return None, None, None
    address, count, index = (os.environ[key] for key in ADDRESS_KEYS)
    if not (count.isdigit() and index.isdigit()):
        raise UserError(f"JAX_NUM_PROCESSES is {count!r} and JAX_PROCESS_ID {index!r}; set them to whole numbers")
    return address, int(count), int(index)


def active() -> bool:
    """Whether this process is one of several."""
    return _job is not None


# Comparing.


def exchange(name: str, value: str) -> list[str]:
    """The values that all processes give under this name, by process; every process calls it.

    Process 0 collects them and hands them out together, because all requests are to one server: two for each process,
    and not one for each pair.
    """
    if _job is None:
        return [value]
    number = _job.rounds[name] = _job.rounds.get(name, 0) + 1
    folder = f"resnet_jax/{name}/{number}"
    if _job.index:
        _job.client.key_value_set(f"{folder}/{_job.index}", value)
        return [str(each) for each in json.loads(_wait_for(_job, f"{folder}/all"))]
    values = [value, *(_wait_for(_job, f"{folder}/{index}") for index in range(1, _job.count))]
    _job.client.key_value_set(f"{folder}/all", json.dumps(values))
    return values


def from_process_0(name: str, find: Callable[[], Any]) -> Any:
    """What ``find`` gives on process 0, a value that JSON has, on all of them; every process calls it.

    For what is found in a file system that the hosts share, which may show them different things for a while.
    """
    if _job is None:
        return find()
    return json.loads(exchange(name, json.dumps(find() if _job.index == 0 else None))[0])


def _wait_for(job: _Job, key: str) -> str:
    while True:  # As long as the process that owes it gives signs of life; the other thread sees to that.
        try:
            return str(job.client.blocking_key_value_get(key, 10_000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def agree(facts: Mapping[str, str]) -> None:
    """Raises UserError, on every process, unless all give the same facts: what each is called, and its value.

    It names the first process that differs from process 0, and in what, in the order that the facts are given in.
    """
    if _job is None:
        return
    own = json.dumps(dict(facts))  # In this order: a count says more than the hash that differs with it.
    if len(set(exchange("hash of facts", hashlib.sha256(own.encode()).hexdigest()))) == 1:
        return
    everyone = [json.loads(text) for text in exchange("facts", own)]
    first = everyone[0]
    for index, other in enumerate(everyone):
        names = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if names:
            differences = ", ".join(
                f"{name} {other.get(name, 'absent')} (and not {first.get(name, 'absent')})" for name in names[:5]
            )
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise UserError(
                f"{_job.hosts[index]} differs from {_job.hosts[0]}: it has {differences}{more}; start every process "
                f"with the same command, code and data"
            )


def everyone(true: bool) -> bool:
    """Whether all processes say so; every process calls it."""
    return all(json.loads(said) for said in exchange("everyone", json.dumps(bool(true))))


def who(index: int) -> str:
    """A process by number and host, for messages."""
    return _job.hosts[index] if _job else f"process {index}"


# Stopping together.


def ask_to_stop(signum: int) -> None:
    """Notes that this process was told to stop; ``stopping`` then comes true on all. Callable in a signal handler."""
    if _job is not None:
        _job.stop_signal = signum


def stopping() -> int | None:
    """The signal that stops the job, at the same call on every process; None before. Every process calls it as often.

    A process that learns of a signal announces its next call, and waits in that for the announcements of all others;
    the latest announced is where all stop. Announcing is left to a thread, because a process may be waiting on the
    device for another that waits here.
    """
    if _job is None:
        return None
    with _job.stop_known:
        _job.points += 1
        _job.stop_known.wait_for(lambda: _job.stop_point is not None or not _job.stop_published)
        if _job.stop_point is None or _job.points < _job.stop_point:
            return None
    return _job.stop_signal or signal.SIGTERM


def _spread_stop(job: _Job) -> None:
    if job.stop_signal is not None:
        job.client.key_value_set(f"resnet_jax/stop/{job.index}", str(int(job.stop_signal)), allow_overwrite=True)
    asked = dict(job.client.key_value_dir_get("resnet_jax/stop/"))
    if not asked:
        return
    job.stop_signal = job.stop_signal or int(next(iter(asked.values())))
    with job.stop_known:
        if not job.stop_published:
            job.client.key_value_set(f"resnet_jax/points/{job.index}", str(job.points + 1), allow_overwrite=True)
            job.stop_published = True
    points = job.client.key_value_dir_get("resnet_jax/points/")
    if len(points) == job.count:
        with job.stop_known:
            job.stop_point = max(int(point) for _, point in points)
            job.stop_known.notify_all()


# Ending.


def finish() -> None:
    """Waits until every process has come to its end, and leaves the job."""
    global _job
    if _job is None:
        return
    exchange("done", "")
    with _job.ending:
        _job.ended.set()
        jax.distributed.shutdown()
        _job = None


def fail(message: str, status: int, report: Callable[[], None]) -> None:
    """Reports why this process is about to end, tells the others, and gives them time to end of themselves."""
    if _job is None:
        report()
        return
    if not _job.ending.acquire(blocking=False):
        time.sleep(60)  # The other thread is ending the process, and has said why.
    report()
    _publish_end(_job, message, status)


def wait_for_news() -> None:
    """After an error that the loss of another process may have caused: does not return if it has."""
    if _job is not None:
        time.sleep(_job.lost_after + 2 * _job.interval)
        if _job.ending.locked():
            time.sleep(60)  # The other thread is ending the process, and tells the others first.


def _publish_end(job: _Job, message: str, status: int) -> None:
    def tell() -> None:
        job.client.key_value_set(f"resnet_jax/end/{job.index}", json.dumps([status, message]), allow_overwrite=True)

    try:
        _in_time(tell, job.interval)
    finally:
        if job.index == 0:  # With it goes the service, and with that the message.
            time.sleep(3 * job.interval + 1)


def _in_time(function: Callable[[], None], seconds: float) -> None:
    """Runs it in a thread that may not come back."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(seconds)


def _end(job: _Job, message: str, status: int, tell: bool) -> None:
    """Ends this process, from another thread than the main one, with one line."""
    if not job.ending.acquire(blocking=False) or job.ended.is_set():
        return
    print(f"\nerror: {message}" if sys.stderr.isatty() else f"error: {message}", file=sys.stderr, flush=True)
    if tell:
        _publish_end(job, message, status)
    os._exit(status)


def _lost_message(job: _Job, index: int) -> str:
    return (
        f"{job.hosts[index]} was lost: killed, stopped or out of reach; the last checkpoint is kept; "
        f"run the same command again on every host"
    )


def _talk(job: _Job) -> None:
    """Gives signs of life and hears those of the others. A call that never returns is noticed by ``_watch``."""
    beats: dict[str, str] = {}
    number = 0
    failures = 0
    while not job.ended.wait(job.interval if number else 0):
        number += 1
        try:
            job.client.key_value_set(f"resnet_jax/alive/{job.index}", str(number), allow_overwrite=True)
            for key, beat in job.client.key_value_dir_get("resnet_jax/alive/"):
                if beats.get(key) != beat:
                    beats[key] = beat
                    job.heard[int(key.rpartition("/")[2])] = time.monotonic()
            job.heard[job.index] = time.monotonic()
            _spread_stop(job)
            for key, ended in job.client.key_value_dir_get("resnet_jax/end/"):
                status, message = json.loads(ended)
                index = int(key.rpartition("/")[2])
                if index != job.index:
                    time.sleep(job.interval)  # Time to come to the same end in its own words.
                    own = message if status == LOST else f"{job.hosts[index]} stopped: {message}"
                    _end(job, own, status, tell=job.index == 0)
            failures = 0
        except Exception:  # Of any kind, from JAX's client, once process 0 is gone.
            failures += 1
            if failures >= 3 and not _reachable(job.coordinator):
                _end(job, _lost_message(job, 0), LOST, tell=False)


def _watch(job: _Job) -> None:
    while not job.ended.wait(min(1.0, job.interval)):
        now = time.monotonic()
        if now - job.heard[job.index] > job.lost_after:  # Process 0 does not answer.
            _end(job, _lost_message(job, 0), LOST, tell=False)
        if now - job.heard[job.index] > 3 * job.interval:
            continue  # What this process has not been told yet says nothing of the others.
        for index, last in list(job.heard.items()):
            if now - last > job.lost_after:
                _end(job, _lost_message(job, index), LOST, tell=True)


def _reachable(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return True
    except OSError:
        return False


def _gone(address: str, within: float) -> bool:
    """Whether nobody listens there, now or some time in the next ``within`` seconds."""
    deadline = time.monotonic() + within
    while _reachable(address):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _overdue(seconds: float) -> None:
    message = (
        f"not all processes have come to --coordinator_address within {seconds:g} s; look for one that did not start, "
        f"or raise --start_timeout"
    )
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(LOST)


_abort_handler: Any = None  # Kept alive: C calls it.


def _report_aborts(job: _Job) -> None:
    """JAX aborts the process as soon as the service of process 0 is gone; says so in a line instead.

    Python has no say in that: its handlers run only between two of its own instructions, and abort() does not return.
    """
    global _abort_handler

    def on_abort(signum: int) -> None:
        # Of a process that was killed the connections close one by one, the port that it listens on perhaps last.
        if job.index and _gone(job.coordinator, within=3):
            _end(job, _lost_message(job, 0), LOST, tell=False)
            time.sleep(60)  # The other thread is at it.
        os.write(2, b"error: the runtime aborted; set TF_CPP_MIN_LOG_LEVEL=0 to see why\n")

    _abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(on_abort)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _abort_handler)
