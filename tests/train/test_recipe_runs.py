"""Each recipe trains on photographs, is killed, and resumes to the bits of a run that was never killed."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from resnet_jax.train.writers import read_metrics

ROOT = Path(__file__).resolve().parent.parent.parent
STEPS = 20
SMALL = {
    "model.stage_sizes": "(1,1,1,1)", "model.width": 4, "model.bn_group_size": 4, "batch_size": 8, "eval_batch_size": 8,
    "steps": STEPS, "log_every": 1, "eval_every": STEPS, "checkpoint_every": 4, "data.crop_size": 40,
    "data.train_crop_size": 32, "data.eval_shorter_side": 44,
}  # fmt: skip
RESNET_50 = {
    "resnet_strikes_back.py:a1": {"schedule.warmup_steps": 5},
    "resnet_strikes_back.py:a2": {"schedule.warmup_steps": 5},
    "resnet_strikes_back.py:a3": {"schedule.warmup_steps": 5},
    "resnet_rs.py": {"schedule.warmup_steps": 5},
    "torchvision_v2.py": {"schedule.warmup_steps": 5, "ema_start": 5, "ema_every": 3},
    "fast_imagenet.py:16": {
        "batch_size": 32, "schedule.peak_at": 5, "data.progressive.start_size": 16, "data.progressive.begin": 3,
        "data.progressive.end": 15, "data.progressive.multiple": 8,
    },
    "mlperf.py:4096": {"schedule.warmup_steps": 5},
}  # fmt: skip
ON_CIFAR = {"model.width": 4, "batch_size": 8, "steps": STEPS, "log_every": 1, "eval_every": STEPS}
ON_CIFAR |= {"checkpoint_every": 4, "eval_batch_size": 500}
RESNET_18 = ON_CIFAR | {"model.stage_sizes": "(1,1,1,1)", "schedule.boundaries": "(8,12)"}
CIFAR = {
    "cifar10_recipes.py:resnet18": RESNET_18,
    "cifar10_recipes.py:resnet18_cutout": RESNET_18,
    "cifar10_recipes.py:resnet18_cosine": ON_CIFAR | {"model.stage_sizes": "(1,1,1,1)"},
    "cifar10_recipes.py:resnet20_fast": ON_CIFAR | {"model.stage_sizes": "(1,1,1)", "schedule.peak_at": 5},
    "cifar10_ingredients.py:resnet20_sam": ON_CIFAR
    | {"model.stage_sizes": "(1,1,1)", "schedule.boundaries": "(8,12)", "model.bn_group_size": 4},
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("compiled")


def start(recipe: str, workdir: Path, settings: dict[str, object], compiled: Path) -> subprocess.Popen:
    environment = os.environ | {
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XDG_CACHE_HOME": str(compiled / "cache"),
    }
    command = [sys.executable, "train.py", "--config", f"configs/{recipe}", "--workdir", str(workdir)]
    command += [f"--config.{key}={value}" for key, value in settings.items()]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-2000:]
    return errors


def final_state(workdir: Path) -> dict:
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(workdir.absolute() / "checkpoints" / str(STEPS) / "state")


def leaves(tree, prefix=""):
    for key, value in sorted(tree.items()) if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, (dict, list, tuple)):
            yield from leaves(value, f"{prefix}/{key}")
        elif value is not None:
            yield f"{prefix}/{key}", np.asarray(value)


def check(recipe: str, settings: dict[str, object], folder: Path, compiled: Path) -> None:
    undisturbed, killed = folder / "undisturbed", folder / "killed"
    finish(start(recipe, undisturbed, settings, compiled))
    step = random.randrange(5, 15)
    print(f"killed after step {step}")  # Shown when the test fails.
    process = start(recipe, killed, settings, compiled)
    lines = []
    for line in process.stderr:
        lines.append(line)
        done = re.search(rf" step (\d+)/{STEPS}:", line)
        # Checkpoints are written beside the training: with none yet, there would be nothing to resume from.
        saved = [path.name for path in (killed / "checkpoints").glob("*") if path.name.isdigit()]
        if done and int(done[1]) >= step and saved:
            break
    assert process.poll() is None, f"the run ended before it could be killed: {''.join(lines)[-2000:]}"
    process.kill()
    process.communicate()
    assert "resuming from step" in finish(start(recipe, killed, settings, compiled))
    expected, result = (dict(leaves(final_state(workdir))) for workdir in (undisturbed, killed))
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(result[name], value, err_msg=name)
    records, others = (read_metrics(workdir / "metrics.jsonl") for workdir in (killed, undisturbed))
    assert len(records) == STEPS
    for record, other in zip(records, others, strict=True):
        assert {**record, "images_per_second": 0} == {**other, "images_per_second": 0}
        assert np.isfinite(record["train_loss"])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RESNET_50)
def test_a_recipe_on_photographs_is_killed_and_resumes(recipe, tmp_path, compiled, photographs):
    data = ROOT.parent / "shared" / "tfds"
    if os.environ.get("TFDS_DATA_DIR") or (data / "imagenet2012").is_dir():
        where = {"data_dir": os.environ.get("TFDS_DATA_DIR") or str(data)}
    else:
        where = {"data.name": "folder", "data_dir": str(photographs)}
    check(recipe, SMALL | RESNET_50[recipe] | where, tmp_path, compiled)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", CIFAR)
def test_a_recipe_on_cifar10_is_killed_and_resumes(recipe, tmp_path, compiled, prepared_tfds):
    check(recipe, CIFAR[recipe] | {"data_dir": str(prepared_tfds)}, tmp_path, compiled)
