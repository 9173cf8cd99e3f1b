"""What a plan costs, against multiplications by hand, and what it says is left to do."""

from pathlib import Path

import pytest

from reproduction import cost
from reproduction.experiments import Run, runs, scaled

ROOT = Path(__file__).resolve().parent.parent.parent
RESNET20 = 40_551_040  # Multiply-adds for an image, as test_resnet.py counts them.


def test_training_is_three_passes_over_each_batch_and_one_over_each_evaluated_image():
    config = scaled(ROOT, Run("cifar10", "resnet20"), "paper")
    evaluations = 64_000 // int(config.eval_every)
    assert cost.cost(config, "single") == (
        RESNET20 * (64_000 * 3 * 128 + evaluations * 10_000),
        RESNET20 * 10_000,
    )


def test_views_of_a_photograph_cost_as_their_areas():
    config = scaled(ROOT, Run("imagenet_paper", "resnet18a"), "paper")
    single, ten, multi = (cost.cost(config, protocol).scoring for protocol in ("single", "ten_crop", "multi_scale"))
    assert ten == 10 * single
    # Section 3.4's five shorter sides of photographs of 4 : 3, each with its mirror image.
    areas = sum((side / 224) ** 2 for side in (224, 256, 384, 480, 640))
    assert multi == pytest.approx(2 * 4 / 3 * areas * single)


@pytest.mark.parametrize("done", [None, 4])
def test_a_plan_says_what_is_left_of_each_run_and_trains_nothing(checkout, monkeypatch, done):
    monkeypatch.setattr(cost, "measured_rate", lambda: 1e9)
    planned = runs("fig1", "smoke")
    first, *others = planned
    folder = checkout.places.workdirs / "smoke" / first.name / "checkpoints"
    if done:
        (folder / str(done)).mkdir(parents=True)
    text = cost.plan("fig1", "smoke", planned, checkout.places)
    rows = {row.split("|")[1].strip(): row for row in text.splitlines() if row.startswith("| ")}
    for run in others:
        assert rows[run.name].endswith("| train and score |")
    config = scaled(ROOT, first, "smoke")
    estimate, steps = cost.cost(config, "single"), int(config.steps)
    if done:
        assert f"| resume from step {done}, and score |" in rows[first.name]
    hours = (estimate.training * (1 - (done or 0) / steps) + estimate.scoring) / 1e9 / 3600
    assert f"| {hours:.2f} |" in rows[first.name]
    assert "at 1 billion multiply-adds a second" in text
    assert checkout.called() == []
