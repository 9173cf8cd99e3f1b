"""Every schedule: its rates against numbers written out, the warm-up, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

from resnet_jax.errors import UserError
from resnet_jax.train.schedules import (
    AnySchedule,
    Constant,
    Cosine,
    Exponential,
    Hold,
    Plateau,
    Polynomial,
    Step,
    Triangular,
)


def rates(schedule, steps, peak=0.1, total=64_000, steps_per_epoch=10):
    rate = schedule.make(peak, total, steps_per_epoch)
    return [float(rate(jnp.int32(step))) for step in steps]


def test_the_paper_schedule_divides_by_ten_at_32k_and_48k():
    # Section 4.2. Step 32000 is the first after 32k updates.
    steps = [0, 31_999, 32_000, 47_999, 48_000, 63_999]
    np.testing.assert_allclose(rates(Step(), steps), [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)


def test_step_uses_its_factor_and_boundaries():
    schedule = Step(boundaries=(3, 5, 6), factor=0.5)
    np.testing.assert_allclose(rates(schedule, range(8), peak=0.8), [0.8, 0.8, 0.8, 0.4, 0.4, 0.2, 0.1, 0.1], rtol=1e-6)


def test_boundaries_and_warm_up_may_be_given_in_epochs():
    schedule = Step(boundaries=("0.5 epochs", "2 epochs"), warmup_steps="0.2 epochs")
    found = rates(schedule, [0, 1, 4, 5, 19, 20], total=30)
    np.testing.assert_allclose(found, [0.05, 0.1, 0.1, 0.01, 0.01, 0.001], rtol=1e-6)


@pytest.mark.parametrize("boundaries", [(5, 3), (3, 3), ("2 epochs", 5)])
def test_boundaries_must_increase(boundaries):
    with pytest.raises(UserError, match=r"config\.schedule\.boundaries is .*; its steps must increase"):
        Step(boundaries=boundaries).make(0.1, 100, 10)


@pytest.mark.parametrize("warmup", [0, 10])
def test_cosine_falls_from_the_peak_to_zero_at_the_last_step(warmup):
    steps = np.arange(warmup, 51)
    expected = 0.1 * (1 + np.cos(np.pi * (steps - warmup) / (50 - warmup))) / 2
    np.testing.assert_allclose(rates(Cosine(warmup_steps=warmup), steps, total=50), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("schedule", [Constant(), Plateau()])
def test_constant_stays_and_so_does_plateau_before_it_is_scaled(schedule):
    np.testing.assert_allclose(rates(schedule, [0, 1, 63_999]), 0.1, rtol=1e-6)


@pytest.mark.parametrize("kind", [Step, Plateau, Cosine, Constant, Polynomial])
def test_warm_up_climbs_linearly_and_the_first_step_moves(kind):
    np.testing.assert_allclose(rates(kind(warmup_steps=4), range(5)), [0.025, 0.05, 0.075, 0.1, 0.1], rtol=1e-6)


def test_warm_up_may_begin_at_a_part_of_the_peak_which_then_is_that_of_the_step_after_it():
    found = rates(Constant(warmup_steps=4, warmup_from=0.2), range(6))
    np.testing.assert_allclose(found, [0.02, 0.04, 0.06, 0.08, 0.1, 0.1], rtol=1e-6)
    assert rates(Cosine(warmup_steps=4, warmup_from=0.0), [0]) == [0]


def test_a_cosine_may_end_above_zero_and_restart_in_ever_longer_cycles():
    steps = np.arange(10, 71)
    expected = 0.02 + (0.1 - 0.02) * (1 + np.cos(np.pi * (steps - 10) / 60)) / 2
    np.testing.assert_allclose(rates(Cosine(warmup_steps=10, floor=0.02), steps, total=70), expected, rtol=1e-5)
    # 60 steps in cycles of 1 : 2 : 3 have none; of 1 : 2 : 4 they are 70 / 7 each.
    expected = []
    for length in (10, 20, 40):
        expected += [0.02 + 0.08 * (1 + np.cos(np.pi * step / length)) / 2 for step in range(length)]
    found = rates(Cosine(warmup_steps=10, floor=0.02, cycles=3, cycle_growth=2.0), range(10, 80), total=80)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(UserError, match=r"config\.schedule\.cycles is 9, but a cycle would have no step"):
        rates(Cosine(cycles=9), [], total=5)


@pytest.mark.parametrize(("power", "floor"), [(1.0, 0.0), (2.0, 0.001), (0.5, 0.02)])
def test_polynomial_is_a_power_of_the_remaining_time(power, floor):
    steps = np.arange(4, 40)
    expected = floor + (0.1 - floor) * (1 - (steps - 4) / 36) ** power
    found = rates(Polynomial(power=power, floor=floor, warmup_steps=4), steps, total=40)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_exponential_is_multiplied_by_its_factor_every_so_often():
    steps = np.arange(0, 100, 7)
    stairs = rates(Exponential(factor=0.9, every="2.4 epochs"), steps)
    np.testing.assert_allclose(stairs, 0.1 * 0.9 ** (steps // 24), rtol=1e-5)
    smooth = rates(Exponential(factor=0.9, every=24, staircase=False, warmup_steps=6), steps[1:])
    np.testing.assert_allclose(smooth, 0.1 * 0.9 ** (steps[1:] / 24), rtol=1e-5)
    with pytest.raises(UserError, match=r"config\.schedule\.every is 0; it must be at least one step"):
        rates(Exponential(every=0), [])


def test_triangular_goes_up_and_down_in_straight_lines():
    steps = np.arange(50)
    found = rates(Triangular(peak_at="2 epochs", start=0.25, end=0.1), steps, total=50)
    np.testing.assert_allclose(found, np.interp(steps, [0, 20, 50], [0.025, 0.1, 0.01]), rtol=1e-5)
    for peak_at in (0, 50, "9 epochs"):
        with pytest.raises(UserError, match=r"config\.schedule\.peak_at is .*; it must be after the warm-up, step 0"):
            rates(Triangular(peak_at=peak_at), [], total=50)


def test_warm_up_does_not_shift_the_boundaries():
    np.testing.assert_allclose(rates(Step(boundaries=(6,), warmup_steps=4), [5, 6]), [0.1, 0.01], rtol=1e-6)


@pytest.mark.parametrize("warmup", [64_000, "6400 epochs"])
def test_a_warm_up_as_long_as_the_run_is_refused(warmup):
    with pytest.raises(UserError, match=rf"config\.schedule\.warmup_steps is {warmup!r}; it must be less than"):
        rates(Constant(warmup_steps=warmup), [])


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"name": "linear"}, ()),
        ({"name": "step", "warmup_steps": -1}, ("step", "warmup_steps")),
        ({"name": "step", "factor": -0.1}, ("step", "factor")),
        ({"name": "step", "patience": 5}, ("step", "patience")),
        ({"name": "plateau", "factor": 0.0}, ("plateau", "factor")),
        ({"name": "plateau", "factor": 1.0}, ("plateau", "factor")),
        ({"name": "plateau", "patience": 0}, ("plateau", "patience")),
        ({"name": "cosine", "hold": {"error": 1.5}}, ("cosine", "hold", "error")),
        ({"name": "cosine", "hold": {"error": 0.8, "learning_rate": -1.0}}, ("cosine", "hold", "learning_rate")),
        ({"name": "cosine", "hold": {"learning_rate": 0.02}}, ("cosine", "hold")),  # Would not be read.
        ({"name": "cosine", "warmup_from": 0.1}, ("cosine",)),
        ({"name": "cosine", "cycle_growth": 2.0}, ("cosine",)),
        ({"name": "cosine", "cycles": 0}, ("cosine", "cycles")),
        ({"name": "constant", "warmup_steps": 3, "warmup_from": 1.0}, ("constant", "warmup_from")),
        ({"name": "exponential", "factor": 1.0}, ("exponential", "factor")),
        ({"name": "triangular", "start": 1.0}, ("triangular", "start")),
        ({"name": "polynomial", "power": -1.0}, ("polynomial", "power")),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused_by_its_key(values, key):
    with pytest.raises(pydantic.ValidationError) as caught:
        pydantic.TypeAdapter(AnySchedule).validate_python(values)
    (fault,) = [fault for fault in caught.value.errors() if fault["loc"][: len(key)] == key]
    assert not key or not fault["loc"][len(key) :] or "epochs" not in fault["msg"]


def test_a_step_schedule_takes_factors_that_a_plateau_does_not():
    for factor in (0.0, 1.0, 2.0):
        assert rates(Step(boundaries=(1,), factor=factor), [1]) == pytest.approx([0.1 * factor])


def test_only_plateau_is_changed_by_evaluations():
    plateau = Plateau(patience=2)
    assert plateau.plateau is plateau
    assert all(kind().plateau is None for kind in (Step, Cosine, Constant))
    assert Step(hold=Hold(error=0.8)).hold.learning_rate == 0.01
