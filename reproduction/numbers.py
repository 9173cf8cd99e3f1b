"""Numbers of runs, and numbers as text."""

import math
import statistics

from reproduction.ledger import Record

LAST_LOGS = 5
"""Logged intervals at the end of a run that its training error is the mean of."""


def final_test_error(record: Record) -> float:
    """The last evaluation in training, in percent."""
    return record["curves"]["test"][-1][1]


def final_training_error(record: Record) -> float:
    """The mean of the last logged training errors, in percent."""
    return statistics.mean(error for _, error in record["curves"]["train"][-LAST_LOGS:])


def hardware(record: Record) -> str:
    """What a run was trained on."""
    environment = record["environment"]
    devices = [kind.partition(": ")[2] or kind for kind in environment["devices"]]
    if devices[0] == "cpu":
        return environment["processor"] or "CPU"
    return f"{len(devices)} x {devices[0]}"


def mean_and_deviation(values: list[float]) -> str:
    """ "8.75", or "6.61 ± 0.16" of several."""
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def number(value: float | None) -> str:
    """An error in percent; nothing where there is none."""
    return "" if value is None or math.isnan(value) else f"{value:.2f}"


def difference(values: list[float], of_paper: float | None) -> str:
    return "" if of_paper is None else f"{statistics.mean(values) - of_paper:+.2f}"


def signed(values: list[float]) -> str:
    return ", ".join(f"{value:+.2f}" for value in values)


def named(seeds: list[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
