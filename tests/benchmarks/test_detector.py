"""The detection suite: the suppression that stands in for torchvision's, and the suite at toy size."""

import numpy as np
import pytest

from benchmarks import run
from benchmarks.detector import SCORE_BIASES, with_rules
from benchmarks.shares import shares, table


def sequential(boxes, scores, threshold):
    """Greedy suppression in a loop."""
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        for j in kept:
            first, last = np.maximum(boxes[i, :2], boxes[j, :2]), np.minimum(boxes[i, 2:], boxes[j, 2:])
            shared = np.prod(np.maximum(last - first, 0))
            areas = [np.prod(boxes[k, 2:] - boxes[k, :2]) for k in (i, j)]
            if shared / (sum(areas) - shared) > threshold:
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_the_suppression_for_pytorch_is_the_sequential_one(threshold):
    torch = pytest.importorskip("torch")
    from benchmarks.torch_detector import nms

    rng = np.random.default_rng(0)
    for count in (1, 30, 200):
        corner, sides = rng.uniform(0, 60, (count, 2)), rng.uniform(5, 40, (count, 2))
        boxes = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
        scores = rng.integers(0, 50, count).astype(np.float32)  # Many are equal.
        expected = sequential(boxes.astype(np.float64), scores, threshold)
        found = nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold)
        assert found.tolist() == expected
    assert 1 < len(expected) < 200


def test_every_proposal_is_one_candidate_of_the_last_suppression():
    variables = {"params": {"bn": {"scale": np.ones(3)}, "box_score": {"bias": np.ones(21), "kernel": np.ones(2)}}}
    params = with_rules(variables)["params"]
    np.testing.assert_array_equal(params["bn"]["scale"], 0.5)
    np.testing.assert_array_equal(params["box_score"]["kernel"], 1)
    logits = np.asarray(params["box_score"]["bias"])
    probabilities = np.exp(logits) / np.exp(logits).sum()
    assert logits.tolist() == [*SCORE_BIASES[:2], *[SCORE_BIASES[2]] * 19] and (probabilities[1:] > 0.05).sum() == 1


def test_shares_are_of_the_time():
    speeds = {"whole": [10.0, 20.0, 10.0], "half": [20.0, 40.0, 20.0], "all": [10.0, 20.0, 5.0]}
    assert shares(speeds, "whole") == {"half": 0.5, "all": 1.0}
    assert "| half | 20 | 50.00 % |" in table("title", speeds, "whole")


def test_without_torchvision_a_cpu_run_ends_and_a_smoke_run_goes_on(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not run.has_torchvision()
    with pytest.raises(SystemExit, match=r"^error: .* not installed; pip install --no-deps torchvision==0\.28\.0$"):
        run.say_without_torchvision(smoke=False)
    run.say_without_torchvision(smoke=True)
    assert "only our side is timed" in capsys.readouterr().out
    for comparison in run.detection_suite(smoke=True):
        assert list(comparison.sides) == ["ours"] and comparison.title.startswith("detector, ")


@pytest.mark.slow
def test_parts_of_our_detector_run(monkeypatch, one_device):
    monkeypatch.setattr("resnet_jax.parallel.data_mesh", lambda: one_device)
    monkeypatch.setattr(run, "has_torchvision", lambda: False)
    inference = run.detection_suite(smoke=True)[1]
    speeds = run.measure(inference, rounds=1, smoke=True)
    assert set(speeds) == {"ours", *inference.parts} and len(inference.parts) == 5
    assert all(value > 0 for values in speeds.values() for value in values)
