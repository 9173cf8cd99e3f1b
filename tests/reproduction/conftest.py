"""A checkout whose train.py and eval.py take no time, and records as finished runs leave them."""

from pathlib import Path
from typing import NamedTuple

import pytest

from reproduction.experiments import EXPERIMENTS, Run, scaled
from reproduction.running import Places, values

ROOT = Path(__file__).resolve().parent.parent.parent

TRAIN = """
import json, os, sys, time
from pathlib import Path
workdir = Path(sys.argv[sys.argv.index("--workdir") + 1])
calls = Path(__file__).parent / "calls.txt"
with calls.open("a") as file:
    file.write(f"train {workdir.name}\\n")
if (workdir.parent / f"{workdir.name}.broken").exists():
    sys.exit("error: broken")
if (workdir.parent / f"{workdir.name}.slow").exists():
    import signal
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda number, _: sys.exit(128 + number))
    (workdir.parent / "started").touch()
    time.sleep(60)
(workdir / "checkpoints" / "8").mkdir(parents=True, exist_ok=True)
if (workdir.parent / f"{workdir.name}.stopped").exists():
    os.kill(os.getpid(), 15)
packages = {"jax": "1.2", "flax": "3.4"}
environment = {"commit": "0123456789abcdef", "devices": ["cpu: cpu"], "python": "3.11", "packages": packages}
environment["processor"] = "2 cores of X"
(workdir / "environment.json").write_text(json.dumps(environment))
(workdir / "class_names.json").write_text(json.dumps([str(n) for n in range(10)]))
rates = {4: 0.1, 8: 0.1, 12: 0.01}
rows = [{"step": s, "train_error": 90 - s, "learning_rate": rates[s], "images_per_second": 10.0 * s} for s in rates]
rows[-1]["test_error"] = 50.0
(workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
"""
EVAL = """
import json, sys
from pathlib import Path
workdirs = [Path(a) for b, a in zip(sys.argv, sys.argv[1:]) if b == "--workdir"]
with (Path(__file__).parent / "calls.txt").open("a") as file:
    file.write(f"eval {' '.join(w.name for w in workdirs)}\\n")
for argument in sys.argv:
    flag, _, value = argument.partition("=")
    if flag == "--responses_csv":
        Path(value).write_text("position,layer,std,rank\\n1,stem,0.5,2\\n2,stage1_block1/conv1,1.5,1\\n")
print("a line to read")
if (workdirs[0].parent / "eval.broken").exists() and len(workdirs) > 1:
    sys.exit("error: broken")
step = max(int(path.name) for path in (workdirs[0] / "checkpoints").iterdir())
result = {"split": "test", "num_examples": 9, "top1_error": 12.5, "top5_error": 1.5, "loss": 0.5, "step": step}
print(json.dumps(result | {"seconds": 3.0}))
"""


class Checkout(NamedTuple):
    places: Places
    calls: Path

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    root = tmp_path / "checkout"
    (root / "resnet_jax" / "models").mkdir(parents=True)
    (root / "resnet_jax" / "models" / "net.py").write_text("DEPTH = 20\n")
    (root / "train.py").write_text(TRAIN)
    (root / "eval.py").write_text(EVAL)
    (root / "configs").symlink_to(ROOT / "configs")
    return Checkout(Places(root, tmp_path / "runs", tmp_path / "results", None), root / "calls.txt")


@pytest.fixture
def make_record():
    """A finished run's record."""

    def make(network, seed=0, top1=10.0, train=5.0, test=None, scale="medium", **more):
        errors = {"split": "test", "num_examples": 9, "top1_error": top1, "top5_error": 1.0, "loss": 0.5, "step": 60}
        environment = {"commit": "0123456789abcdef", "devices": ["cpu: cpu"], "processor": "2 cores of X"}
        environment |= {"python": "3.11", "packages": {"jax": "1.2", "flax": "3.4"}}
        (config,) = {c for e in EXPERIMENTS.values() for c in e.configs if c.endswith(f":{network}")}
        run = Run(config.partition(":")[0], network, seed)
        record = {"kind": "run", "run": run.name, "network": network, "config": run.config, "seed": seed, "steps": 60}
        record |= {"scale": scale, "recipe_steps": 1200, "numerics": []}
        record["values"] = values(scaled(ROOT, run, scale))
        record |= {"parameters": 1234567, "images_per_second": 100.0, "environment": environment}
        record |= {"commands": {"training": f"python train.py {network} {seed}"}}
        record["results"] = {"single": errors}
        record["results"] |= dict.fromkeys(("ten_crop", "multi_scale"), errors | {"split": "validation"})
        curve = [[10 * i, train + 6 - i] for i in range(1, 7)]  # Its last five points have the mean train + 2.
        record["curves"] = {"train": curve, "test": [[60, top1 if test is None else test]]}
        return record | more

    return make
