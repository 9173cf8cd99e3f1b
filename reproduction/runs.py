"""The finished runs of a ledger by network."""

from collections.abc import Mapping
from typing import Any

from reproduction.experiments import EXPERIMENTS, Experiment, network
from reproduction.ledger import Record

Records = Mapping[str, list[Record]]  # Network, as in experiments.Run.network -> its runs, by seed.


def by_network(ledger: Mapping[str, Record]) -> Records:
    """The runs of each network by seed; plain, residual and other networks each by depth. Ensembles are left out."""
    records: dict[str, list[Record]] = {}
    for record in sorted(ledger.values(), key=lambda record: record.get("seed", 0)):
        if record["kind"] == "run":
            records.setdefault(record["network"], []).append(record)

    def order(item: tuple[str, list[Record]]) -> tuple[Any, ...]:
        known = network(item[1][0]["values"])
        return ("plain", "residual", "highway", "vgg").index(known.kind), known.depth, known.title

    return dict(sorted(records.items(), key=order))


def title(record: Record) -> str:
    """What the paper calls a run's network."""
    return network(record["values"]).title


def evaluated(found: Records) -> str:
    """The split of the curves of the runs, which are all of one data set."""
    return "validation" if any("data.crop_size" in run["values"] for runs in found.values() for run in runs) else "test"


def found_runs(name: str, ledger: Mapping[str, Record]) -> tuple[Records, Experiment]:
    """The runs that have what an experiment needs, in its order, and the experiment."""
    experiment, records = EXPERIMENTS[name], by_network(ledger)
    found = {}
    for member in experiment.networks:
        runs = [record for record in records.get(member, []) if experiment.protocol in record["results"]]
        if experiment.responses:
            runs = [record for record in runs if "responses" in record]
        if runs:
            found[member] = runs
    return found, experiment
