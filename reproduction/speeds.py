"""The README's speeds, out of the ledger's benchmark records."""

from collections.abc import Iterable
from typing import Any

from reproduction.document import Block, Paragraph, Table
from reproduction.ledger import Record
from reproduction.numerics import short

_INPUT = "input_pipeline"  # The programs of benchmarks/ that measure input, as titles of comparisons begin.
_STREAMING = "streaming_train"


def steps(records: Iterable[Record]) -> list[Block]:
    """Steps of training beside PyTorch's: a table of each record's comparisons, and what it shows in words."""
    blocks: list[Block] = []
    for record in records:
        found = {title: each for title, each in record["comparisons"].items() if title.startswith("training, ")}
        if not found:
            continue
        sides = list(dict.fromkeys(side for each in found.values() for side in each["sides"]))
        rows = [[side, *(_cell(each["sides"].get(side), ratio=True) for each in found.values())] for side in sides]
        header = ["images/s (min-max), ratio", *(title.removeprefix("training, ") for title in found)]
        compared = {title: each for title, each in found.items() if each.get("beside")}  # Not where we alone ran.
        blocks += [Table(header, rows), *(Paragraph(_beside_others(title, each)) for title, each in compared.items())]
        blocks.append(Paragraph(_source(record, next(iter(found.values())))))
    return blocks


def _beside_others(title: str, comparison: Record) -> str:
    """What a comparison shows, in words."""
    sides, network = comparison["sides"], title.removeprefix("training, ").partition(",")[0]
    text = [f"{ratio:.2f} times the speed of {other}" for other, ratio in comparison["beside"].items()]
    if "ours, whole trainer" in sides:
        share = sides["ours, whole trainer"]["ratio"] / sides["ours"]["ratio"]
        return (
            f"resnet_jax trains {network} at {', '.join(text)}; the whole trainer runs at {share:.2f} of the bare step."
        )
    return f"resnet_jax trains {network} at {', '.join(text)}."


def inputs(records: Iterable[Record]) -> list[Block]:
    """Decoding beside tf.data, and the trainer beside its parts."""
    blocks: list[Block] = []
    for record in records:
        decoding = {title: each for title, each in record["comparisons"].items() if title.startswith(_INPUT)}
        if decoding:
            sides = list(dict.fromkeys(side for each in decoding.values() for side in each["sides"]))
            disk: dict[str, Any] = record.get("disk_kB", {})
            header = ["images/s (min-max), ratio", *(title.removeprefix(f"{_INPUT}, ") for title in decoding)]
            rows = [
                [side, *(_cell(each["sides"].get(side), ratio=True) for each in decoding.values())] for side in sides
            ]
            if disk:
                header.append("disk a photograph")
                rows = [[*row, f"{disk[row[0]]} kB" if row[0] in disk else ""] for row in rows]
            blocks.append(Table(header, rows))
        streaming = {title: each for title, each in record["comparisons"].items() if title.startswith(_STREAMING)}
        for title, each in streaming.items():
            sides = each["sides"]
            what = title.removeprefix(_STREAMING).lstrip(", ") or "The trainer"
            listed = ", ".join(f"{name} {_cell(side)}" for name, side in sides.items())
            blocks.append(
                Paragraph(
                    f"{what}: {listed} images/s, medians of {each['rounds']} rounds; the trainer reaches "
                    f"{each['trainer_share']:.2f} of its slower part."
                )
            )
        if decoding or streaming:
            blocks.append(Paragraph(_source(record, next(iter((decoding | streaming).values())))))
    return blocks


def _cell(side: Record | None, ratio: bool = False) -> str:
    """ "1035 (1001-1101), 1.10"; one place after the point below 100 images/s."""
    if side is None:
        return ""
    places = 1 if side["median"] < 100 else 0
    speed, least, most = (f"{side[key]:.{places}f}" for key in ("median", "min", "max"))
    return f"{speed} ({least}-{most})" + (f", {side['ratio']:.2f}" if ratio else "")


def _source(record: Record, comparison: Record) -> str:
    """Where the numbers are from."""
    environment = record["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())
    device = environment.get("device", "")
    accelerator = None if device.endswith(" x cpu") else device
    where = ", ".join(filter(None, [accelerator, environment.get("processor"), versions]))
    note = f" {record['note']}" if record.get("note") else ""
    return (
        f"Medians of {comparison['rounds']} rounds in which the sides take turns; ratios, medians of each round's, are "
        f"to {comparison['reference']}. {where}; commit {short(record['commit'])}: `{record['command']}`.{note}"
    )
