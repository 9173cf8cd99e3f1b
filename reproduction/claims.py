"""What the runs say of the paper's claims, and whether they can say anything."""

import math
import statistics
from collections.abc import Mapping
from typing import NamedTuple

from reproduction import paper
from reproduction.experiments import SCALES, network
from reproduction.ledger import Record
from reproduction.numbers import final_test_error, final_training_error, hardware, mean_and_deviation, named, signed
from reproduction.runs import by_network, evaluated, found_runs, title

DISTANCE = 2.0
"""Percentage points of test error within which the shallow network of a pair must be of the published error."""

DEVIATION = paper.REPEATED["resnet110"].deviation
"""Standard deviation of a run's error, in percentage points: that of the paper's five runs of ResNet-110 (Table 6)."""

MARGIN = 2 * math.sqrt(2) * DEVIATION
"""Percentage points of error below which two runs are not told apart: two standard deviations of their difference."""

BEGUN = 50.0
"""Percent of training error on CIFAR-10 by which it is said how soon networks begin to learn."""


class Finding(NamedTuple):
    """What can be said: sentences, or why nothing can be (``told`` is False)."""

    told: bool
    sentences: list[str]


def whole_recipes(ledger: Mapping[str, Record]) -> list[str]:
    """What networks that were trained by a whole recipe show beside their published errors, a sentence each.

    Of a network that the paper trained several times, its mean is what ours is compared with. How far runs on ImageNet
    differ by chance is not known.
    """
    sentences = []
    for member, records in by_network(ledger).items():
        for protocol in dict.fromkeys(protocol for run in records for protocol in run["results"]):
            published, split = paper.compared(protocol).get(member, (None, ""))
            whole = [run for run in records if protocol in run["results"] and run["steps"] == run["recipe_steps"]]
            runs = [run for run in whole if run["results"][protocol]["split"] == split]
            if not runs or published is None:
                continue
            errors = [run["results"][protocol]["top1_error"] for run in runs]
            apart = statistics.mean(errors) - published
            views = "" if protocol == "single" else f" under {protocol}"
            sentences.append(
                f"{title(runs[0])} has {mean_and_deviation(errors)} % {split} error{views} after the whole recipe "
                f"({named([run['seed'] for run in runs])}), {abs(apart):.2f} points {'more' if apart > 0 else 'less'} "
                f"than the paper's {published:.2f} %{_by_chance(apart, len(runs)) if split == 'test' else ''}."
            )
    return sentences


def _by_chance(apart: float, runs: int) -> str:
    """Whether runs on CIFAR-10, of which the deviation is, may differ so much from the paper's one."""
    margin = 2 * DEVIATION * math.sqrt(1 + 1 / runs)
    return (
        f": {'within' if abs(apart) <= margin else 'beyond'} the {margin:.2f} that are put down to chance (two "
        "standard deviations of such a difference, by the paper's five runs of ResNet-110)"
    )


def degradation(name: str, scale: str, ledger: Mapping[str, Record]) -> Finding:
    """What runs of ``name`` ("fig6", "fig4") say of the claim that depth degrades plain networks and not residual ones.

    The deepest plain network is compared with the shallowest, and so are their residual twins, seed by seed, by
    training and by test error (of ImageNet: validation error), which must differ by ``MARGIN``. A verdict needs a
    training that is long enough: the shallow residual network must have come within ``DISTANCE`` points of its
    published error, and so must the shallow plain network if its own is published. On CIFAR-10 it is not (plain-20 is
    only drawn, in Figure 6), and the twin's stands for it.
    """
    found, experiment = found_runs(name, ledger)
    if not SCALES[scale].verdicts or not found:
        return Finding(False, [])
    families: dict[str, dict[int, tuple[str, list[Record]]]] = {"plain": {}, "residual": {}}
    for member, runs in found.items():
        known = network(runs[0]["values"])
        families[known.kind][known.depth] = (member, runs)
    depths = sorted(families["plain"].keys() & (families["residual"] or families["plain"]).keys())
    if len(depths) < 2:
        return Finding(False, ["Too few networks have been run to say anything of depth."])
    short = _too_short(families, depths[0], experiment.protocol)
    if short:
        return Finding(False, [short])
    sentences: list[str] = []
    costs: dict[str, dict[int, tuple[float, float]]] = {}  # Of training and test error, by kind and seed.
    for kind, networks in families.items():
        shallow, deep = (
            {run["seed"]: run for run in networks[depth][1]} if depth in networks else {}
            for depth in (depths[0], depths[-1])
        )
        seeds = sorted(shallow.keys() & deep.keys())
        if not seeds:
            continue
        train = [final_training_error(deep[seed]) - final_training_error(shallow[seed]) for seed in seeds]
        test = [final_test_error(deep[seed]) - final_test_error(shallow[seed]) for seed in seeds]
        costs[kind] = dict(zip(seeds, zip(train, test, strict=True), strict=True))
        worse = sum(min(both) > MARGIN for both in costs[kind].values())
        better = sum(max(both) < -MARGIN for both in costs[kind].values())
        shown, all_seeds = worse if kind == "plain" else better, len(seeds)
        verdict = "reproduced" if shown else "not reproduced"
        verdict += f" for {shown} of {all_seeds} seeds" if 0 < shown < all_seeds else ""
        claim = "Deeper plain networks are worse" if kind == "plain" else "Deeper residual networks are better"
        sentences.append(
            f"{claim}: {verdict}. From {depths[0]} to {depths[-1]} layers the training error changes by "
            f"{signed(train)} and the {evaluated(found)} error by {signed(test)} points "
            f"({'one run each, ' if len(seeds) == 1 else ''}{named(seeds)}{_machines(shallow, deep, seeds)})."
        )
        if evaluated(found) == "test":
            sentences[-1] += _starts([shallow[seed] for seed in seeds], [deep[seed] for seed in seeds], depths)
    if not costs:
        return Finding(False, ["No seed has been run of both the shallow and the deep network of a pair."])
    common = costs.get("plain", {}).keys() & costs.get("residual", {}).keys()
    if common:
        saved = [
            [plain - residual for plain, residual in zip(costs["plain"][seed], costs["residual"][seed], strict=True)]
            for seed in common
        ]
        less = all(statistics.mean(points) > MARGIN for points in zip(*saved, strict=True))
        sentences.append(f"With shortcuts depth costs {'less' if less else 'no less'} than without.")
    return Finding(True, sentences)


def _machines(shallow: Mapping[int, Record], deep: Mapping[int, Record], seeds: list[int]) -> str:
    """ ", on different hardware" where the runs of a pair were."""
    return "" if all(hardware(shallow[seed]) == hardware(deep[seed]) for seed in seeds) else ", on different hardware"


def _starts(shallow: list[Record], deep: list[Record], depths: list[int]) -> str:
    """By which logged step the networks were below ``BEGUN``, if the deep one was later; empty if one never was."""
    begun = [[_first_below(run) for run in runs] for runs in (shallow, deep)]
    if any(step is None for steps in begun for step in steps):
        return ""
    first, last = (statistics.mean(step for step in steps if step) for steps in begun)
    if last <= first:
        return ""
    average = ", on average," if len(deep) > 1 else ""
    return (
        f" The training error was below {BEGUN:g} %{average} by step {first:,.0f} of {deep[0]['steps']:,} with "
        f"{depths[0]} layers and by step {last:,.0f} with {depths[-1]}."
    )


def _first_below(run: Record) -> int | None:
    """The first logged step at which the training error is below ``BEGUN``."""
    return next((step for step, error in run["curves"]["train"] if error < BEGUN), None)


def _too_short(families: Mapping[str, Mapping[int, tuple[str, list[Record]]]], depth: int, protocol: str) -> str | None:
    """Why the networks of this depth have not been trained long enough for a verdict; None if they have."""
    judged = 0
    for networks in families.values():
        member, runs = networks.get(depth, ("", []))
        published = paper.top1(protocol).get(member)
        if published is None:
            continue
        judged += 1
        error = statistics.mean(run["results"][protocol]["top1_error"] for run in runs)
        if error > published + DISTANCE:
            return (
                f"Too short to tell what depth does: {title(runs[0])}, the shallow network, is at {error:.2f} % and "
                f"not within {DISTANCE:g} points of its published {published:.2f} %."
            )
    if not judged:
        return (
            f"Too short to tell what depth does: there is no residual network of {depth} layers to show that the "
            "training is long enough, and the plain one has no published error."
        )
    return None
