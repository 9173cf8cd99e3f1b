"""Whole runs from a config on photographs: the mean image that they keep, and photographs that cannot be read."""

import json
import os
import shutil
import signal

import numpy as np
import PIL.Image
import pytest

from resnet_jax import parallel
from resnet_jax.config import Config, override
from resnet_jax.errors import UserError
from resnet_jax.experiment.scoring import score
from resnet_jax.experiment.training import train
from resnet_jax.train.signals import Stopped
from resnet_jax.train.writers import MetricsWriter, read_metrics


@pytest.fixture(autouse=True)
def on_one_device(one_device, monkeypatch):
    """The sooner compiled."""
    monkeypatch.setattr(parallel, "data_mesh", lambda devices=None: one_device)


def config_of(root, **changes):
    values = {
        "data_dir": str(root),
        "data.kind": "photographs",
        "data.name": "folder",
        "data.crop_size": 32,
        "data.crop.shorter_side": (36, 48),
        "data.eval_shorter_side": 36,
        "data.threads": 2,
        "model.name": "resnet18",
        "model.stage_sizes": (1,),
        "model.width": 4,
        "schedule.name": "constant",
        "batch_size": 8,
        "eval_batch_size": 8,
        "steps": 4,
        "log_every": 1,
        "eval_every": 2,
        "checkpoint_every": 2,
    }
    return override(Config(), values | changes)


@pytest.mark.extensive
def test_a_run_keeps_the_mean_image_that_it_began_with(photographs, tmp_path, monkeypatch):
    root, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(photographs, root)
    config, write = config_of(root), MetricsWriter.write

    def write_and_stop(self, record):
        write(self, record)
        if record["step"] == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as context:
        context.setattr(MetricsWriter, "write", write_and_stop)
        with pytest.raises(Stopped):
            train(config, run)
    before = (run / "normalization.npz").read_bytes()
    for path in (root / "train").rglob("*.jpg"):
        PIL.Image.new("RGB", (40, 40)).save(path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    assert train(config, run).step == 4
    assert (run / "normalization.npz").read_bytes() == before
    with np.load(run / "normalization.npz") as saved:
        assert saved["mean"].shape == (32, 32, 3)
        assert saved["mean"].min() > 0.1  # Not that of black photographs.


@pytest.mark.parametrize("normalization_name", ["channel", "per_pixel_mean"])
@pytest.mark.extensive
def test_too_many_unreadable_photographs_stop_a_run_with_one_line(photographs, tmp_path, capsys, normalization_name):
    """In training, or before it when the mean image is computed."""
    root = tmp_path / "data"
    shutil.copytree(photographs, root)
    broken = sorted((root / "train").rglob("1?.jpg"))[:3]
    for path in broken:
        path.write_bytes(path.read_bytes()[:40])
    changes = {"normalization.name": normalization_name, "steps": 6}
    with pytest.raises(
        UserError, match=r"^3 photographs cannot be decoded, more than config\.data\.max_unreadable 2; "
    ):
        train(config_of(root, **changes, **{"data.max_unreadable": 2}), tmp_path / "run")
    warnings = [line for line in capsys.readouterr().err.splitlines() if "cannot be decoded" in line]
    assert len(warnings) == 3
    assert all(any(str(path.relative_to(root)) in line for line in warnings) for path in broken)
    if normalization_name == "channel":
        again = config_of(root, **changes, **{"data.max_unreadable": 3})
        assert train(again, tmp_path / "run", allow_config_change=True).step == 6
    else:
        assert not (tmp_path / "run").exists()


def test_the_sample_of_imagenet_is_trained_on_and_scored(prepared_tfds, tmp_path):
    if not (prepared_tfds / "imagenet2012").is_dir():
        pytest.skip(f"needs imagenet2012 prepared in {prepared_tfds}")
    changes = {"data.name": "imagenet2012", "normalization.name": "channel", "steps": 2}
    config = override(config_of(prepared_tfds, **changes), {"data.crop.name": "random_resized"})
    train(config, tmp_path)
    (*_, last) = read_metrics(tmp_path / "metrics.jsonl")
    assert len(json.loads((tmp_path / "class_names.json").read_text())) == 1000
    result = score(config, [tmp_path]).record
    assert result["num_examples"] == 100
    assert (result["top1_error"], result["loss"]) == (last["validation_error"], last["validation_loss"])
