"""The check of what small detectors learn: its bounds, its status and its eight pictures. CI runs it at toy size."""

import numpy as np
import pytest

from benchmarks import detection_learning
from benchmarks.detection_learning import Figure, few_shapes
from resnet_jax.config import load_config
from resnet_jax.data.dataset import Share


def test_a_figure_at_its_bound_is_enough_or_not():
    assert not Figure("AP", 85.0, at_least=85).missed and Figure("AP", 84.9, at_least=85).missed
    assert Figure("untrained", 2.0, below=2).missed and not Figure("untrained", 1.9, below=2).missed
    assert Figure("AP", float("nan"), at_least=85).missed and Figure("AP", float("nan"), below=85).missed
    assert not Figure("minutes", None, below=20).missed
    assert str(Figure("AP", 84.9, at_least=85)) == "| AP | 84.90 | at least 85.00 | MISSED |"


def test_the_status_tells_whether_a_figure_was_missed(monkeypatch, capsys, tmp_path):
    found = [Figure("AP", 90.0, at_least=85), Figure("untrained", 3.0, below=2)]
    monkeypatch.setattr(detection_learning, "figures", lambda kind, folder, smoke: iter(found))
    monkeypatch.setattr(detection_learning.cli, "use_compilation_cache", lambda: None)
    command = ["detection_learning", "--folder", str(tmp_path), "--kind", "fpn"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit, match=r"^1 figures miss their bounds: untrained$"):
        detection_learning.main()
    assert "| AP | 90.00 | at least 85.00 |  |" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*command, "--smoke"])
    detection_learning.main()
    monkeypatch.setattr("sys.argv", command)
    del found[1]
    detection_learning.main()


def test_eight_pictures_are_trained_and_scored_on():
    config = load_config("configs/detection_quickstart.py:fpn")
    data = few_shapes(config)
    assert data.count("train") == data.count("validation") == 8
    (batch,) = data.training_batches(0, 8, 0, 1, Share())
    assert sorted(batch["index"]) == list(range(8))
    for one, other in zip(data.ground_truth("train"), data.ground_truth("validation"), strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
