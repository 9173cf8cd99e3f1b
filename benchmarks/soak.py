"""Trains, kills or stops, and resumes at random for a set time.

python -m benchmarks.soak --minutes 30 --folder runs/soak

Memory, threads and descriptors of the training process are sampled all the time. At the end the run is finished and
compared to the bit with one that nothing disturbed, which takes about as long again and in which growth shows: from its
second tenth to its last. Prints a line of JSON; the status is 1 where bits differ.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def start(workdir: Path, steps: int) -> subprocess.Popen:
    """A small run whose checkpoints, evaluations and log lines come often."""
    command = [sys.executable, "train.py", "--config", "configs/quickstart.py", "--workdir", str(workdir)]
    settings = {
        "model.stage_sizes": "(1,)",
        "model.width": 4,
        "batch_size": 16,
        "steps": steps,
        "log_every": 10,
        "eval_every": 100,
        "checkpoint_every": 20,
        "schedule.name": "constant",
    }
    command += ["--allow_config_change"]  # Of the number of steps, at the end.
    command += [f"--config.{key}={value}" for key, value in settings.items()]
    with (workdir.parent / f"{workdir.name}.log").open("a") as log:
        return subprocess.Popen(command, cwd=ROOT, stderr=log)


def usage(pid: int) -> dict[str, int]:
    """Resident MiB, threads and open descriptors of a process; empty once it is gone."""
    try:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return {
            "memory_mib": int(status["VmRSS"].split()[0]) // 1024,
            "threads": int(status["Threads"]),
            "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        }
    except (OSError, KeyError):
        return {}


def sampled(process: subprocess.Popen, until: float = float("inf")) -> list[dict[str, int]]:
    """The usage of a process, twice a second, to its end or the time given."""
    samples = []
    while time.monotonic() < until and process.poll() is None:
        samples.append(usage(process.pid))
        time.sleep(0.5)
    return [sample for sample in samples if sample]


def growth(samples: list[dict[str, int]]) -> dict[str, float]:
    """By how much the median of the last tenth is above that of the second: compiling is over by then."""
    tenth = len(samples) // 10
    if not tenth:
        return {}
    early, late = samples[tenth : 2 * tenth], samples[-tenth:]
    return {
        name: statistics.median(sample[name] for sample in late) - statistics.median(sample[name] for sample in early)
        for name in samples[0]
    }


def digest(workdir: Path, steps: int) -> str:
    """A hash of the checksums of the last checkpoint, and of the records but for their speeds."""
    saved = (workdir / "checkpoints" / str(steps) / "checksums" / "crc32.json").read_text()
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("images_per_second", None)
    return hashlib.sha256((saved + json.dumps(records)).encode()).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--folder", type=Path, default=Path("runs/soak"))
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, folder = random.Random(args.seed), args.folder.absolute()
    if folder.exists():
        sys.exit(f"error: {folder} exists; name another --folder")
    folder.mkdir(parents=True)
    disturbed, deadline = folder / "disturbed", time.monotonic() + 60 * args.minutes
    ends = {"killed": 0, "stopped": 0, "complete": 0}
    runs: list[list[dict[str, int]]] = []
    while time.monotonic() < deadline:
        process = start(disturbed, args.steps)
        runs.append(sampled(process, min(time.monotonic() + rng.uniform(5, 60), deadline)))
        kind = rng.choice(["killed", "stopped"]) if process.poll() is None else "complete"
        ends[kind] += 1
        if kind != "complete":
            process.send_signal(signal.SIGKILL if kind == "killed" else signal.SIGTERM)
        expected = {"killed": -signal.SIGKILL, "stopped": 128 + signal.SIGTERM, "complete": 0}[kind]
        # SIGTERM before training has begun ends the process as it does any.
        if process.wait(300) not in (expected, -signal.SIGTERM if kind == "stopped" else expected):
            sys.exit(f"error: exit status {process.returncode} when {kind}; see {folder}/disturbed.log")
        if kind == "complete":
            break
    # Both end at the next evaluation. How long the run is has no part in its numbers: the rate is constant.
    saved = [int(path.name) for path in (disturbed / "checkpoints").glob("*") if path.name.isdigit()]
    steps = min(args.steps, (max(saved, default=0) // 100 + 1) * 100)
    digests = []
    for workdir in (disturbed, folder / "undisturbed"):
        process = start(workdir, steps)
        runs.append(sampled(process))
        if process.wait():
            sys.exit(f"error: a run could not be finished; see {workdir}.log")
        digests.append(digest(workdir, steps))
    peak = {name: max(sample[name] for samples in runs for sample in samples) for name in runs[-1][0]}
    same = digests[0] == digests[1]
    figures = {"steps": steps, **ends, "same_bits": same, "peak": peak, "growth": growth(runs[-1])}
    print(json.dumps(figures | {"undisturbed_seconds": len(runs[-1]) // 2}))
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
