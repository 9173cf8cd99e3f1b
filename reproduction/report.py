"""The report of a scale, and the generated blocks of documents: our numbers beside the paper's, out of the ledger."""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from reproduction import detection, paper, running, speeds
from reproduction.claims import DISTANCE, MARGIN, degradation, whole_recipes
from reproduction.document import (
    Block,
    Commands,
    Contents,
    Heading,
    Paragraph,
    Table,
    to_html,
    to_markdown,
)
from reproduction.experiments import EXPERIMENTS, SCALES
from reproduction.ledger import FOLDERS, Record, read_ledger, read_record
from reproduction.numbers import hardware, mean_and_deviation, number
from reproduction.numerics import numerics_hash, short
from reproduction.runs import by_network, title
from reproduction.sections import section
from resnet_jax.errors import UserError
from resnet_jax.files import replace_atomically

_FINDINGS = ("fig6", "fig4")  # Whose picture a report opens with, and what they say of depth: the first that was run.


def write_report(root: Path, results: Path, scale: str) -> Path:
    """Writes RESULTS/SCALE/report.html, which needs no other file, and report.md with its pictures beside it.

    ``root`` is the checkout, whose configs tell which records are of today's settings; the others are left out.
    """
    folder = results / scale
    folder.mkdir(parents=True, exist_ok=True)
    blocks = _blocks(root, folder, scale, _of_paper(_ledger(root, results, scale)))
    for name, text in (("report.html", to_html(blocks)), ("report.md", to_markdown(blocks))):
        with replace_atomically(folder / name) as file:
            file.write(text.encode())
    return folder / "report.html"


def one_section(root: Path, results: Path, scale: str, name: str) -> list[Block]:
    """A single table or figure, under the statement of its scale."""
    (results / scale).mkdir(parents=True, exist_ok=True)
    ledger = _ledger(root, results, scale)
    if name in detection.TABLES:
        return detection.section(name, scale, ledger) or detection.published(name)
    blocks = section(name, scale, results / scale, ledger)
    found = degradation(name, scale, ledger).sentences if name in _FINDINGS else []
    statement = [Paragraph(SCALES[scale].statement), *(Paragraph(sentence, strong=True) for sentence in found)]
    return [*blocks[:1], *statement, *blocks[1:]]


def has_records(root: Path, results: Path, scale: str) -> bool:
    """Whether a report of this scale has anything to say."""
    return bool(_of_paper(_ledger(root, results, scale)))


def _ledger(root: Path, results: Path, scale: str) -> dict[str, Record]:
    found = read_ledger(results, scale, partial(_is_current, root, scale))
    for name in [name for name, record in found.items() if record["kind"] == "ensemble"]:
        if not _has_members(found[name], found):
            del found[name]
            print(f"left out: {name} has members that are missing or were trained anew since", file=sys.stderr)
    return found


def _has_members(ensemble: Record, ledger: Mapping[str, Record]) -> bool:
    """Whether an ensemble's members are there, with the losses that they had."""
    (protocol,) = ensemble["results"]
    members = {name: ledger[name]["results"].get(protocol, {}) for name in ensemble["members"] if name in ledger}
    return ensemble["members"] == {name: result.get("loss") for name, result in members.items()}


def _is_current(root: Path, scale: str, record: Record) -> bool:
    kinds = {"run": running.is_current, "detection": detection.is_current}
    return record["kind"] not in kinds or kinds[record["kind"]](root, scale, record)


_OTHERS = {network for each in EXPERIMENTS.values() if not each.of_paper for network in each.networks}


def _of_paper(ledger: Mapping[str, Record]) -> dict[str, Record]:
    return {name: record for name, record in ledger.items() if record.get("network") not in _OTHERS}


def _blocks(root: Path, folder: Path, scale: str, ledger: Mapping[str, Record]) -> list[Block]:
    trained = sum(record["kind"] == "run" for record in ledger.values())
    names = [name for name, each in EXPERIMENTS.items() if each.of_paper and (name != "table1" or scale != "smoke")]
    sections = {name: section(name, scale, folder, ledger) for name in names}
    first = next((name for name in _FINDINGS if sections[name]), None)
    found = whole_recipes(ledger) + (degradation(first, scale, ledger).sentences if first else [])
    statement = SCALES[scale].statement
    blocks: list[Block] = [Heading(f"Deep Residual Learning, reproduced at {scale} scale", 1)]
    blocks += [Paragraph(sentence, strong=True) for sentence in found or [statement]]
    if first is not None:
        heading, picture, *rest = sections[first]
        blocks.append(picture)
        sections[first] = [heading, Paragraph("The picture is at the top."), *rest]
    blocks.append(
        Paragraph(
            f"{f'{statement} ' if found else ''}Tables and figures of He, Zhang, Ren and Sun (arXiv 1512.03385), from "
            f"{trained} finished runs. Errors are in percent. What has not been run is left out."
        )
    )
    if SCALES[scale].verdicts:
        blocks.append(Paragraph(_RULE))
    blocks.append(Contents())
    for each in sections.values():
        blocks += each
    for table in detection.TABLES:
        blocks += detection.section(table, scale, ledger)
    return blocks + _runs(root, ledger)


_RULE = (
    "A difference is ours less the paper's, where both are of the same split. What depth does is only said where "
    "training was long enough: the shallow network of each pair must have come within "
    f"{DISTANCE:g} percentage points of its published error. No error of plain-20 is published as a number; there "
    f"ResNet-20's stands for both. Differences of less than {MARGIN:.2f} points are put down to chance: two standard "
    "deviations of the difference of two runs, by the paper's five runs of ResNet-110."
)


def _runs(root: Path, ledger: Mapping[str, Record]) -> list[Block]:
    trained = [record for record in ledger.values() if record["kind"] in ("run", "detection")]
    if not trained:
        return []
    today, rows, others = numerics_hash(root), [], False
    for record in trained:
        environment = record["environment"]
        versions = environment["packages"]
        codes = [*record["numerics"], *(each.get("numerics", "") for each in record.get("results", {}).values())]
        same = bool(record["numerics"]) and set(codes) == {today}
        others = others or not same
        rows.append(
            [
                record["run"],
                f"{record['steps']:,}",
                f"{record['images_per_second']:.0f}" if "images_per_second" in record else "",
                hardware(record),
                f"jax {versions['jax']}, flax {versions['flax']}",
                short(environment["commit"]),
                "current" if same else ", ".join(dict.fromkeys(filter(None, codes))) or "not recorded",
            ]
        )
    lines = [line for record in ledger.values() for line in record["commands"].values()]
    note = (
        " The last column has a hash of the modules that compute numbers, where it is not that of the code which wrote "
        f"this report ({today}): something in them has changed since, and the same command may give other numbers now."
    )
    return [
        Heading("Runs"),
        Paragraph(
            "Images/s are medians over the run, beside whatever else the machine did. Every run is resumable."
            + (note if others else "")
        ),
        Table(["run", "steps", "images/s", "hardware", "versions", "commit", "code"], rows),
        Heading("Commands"),
        Commands("\n".join(lines)),
    ]


# Documents.


def _results(root: Path, results: Path) -> list[Block]:
    """The networks trained at a length that can show something, beside the paper's error on the same views.

    Below stands what whole recipes show, what the runs say of degradation, and how given weights score.
    """
    rows, sentences = [], []
    for scale in (scale for scale in SCALES if SCALES[scale].verdicts):
        ledger = _of_paper(_ledger(root, results, scale))
        for member, runs in by_network(ledger).items():
            for protocol in dict.fromkeys(protocol for run in runs for protocol in run["results"]):
                scored = [run for run in runs if protocol in run["results"]]
                errors = [run["results"][protocol]["top1_error"] for run in scored]
                rows.append(
                    [
                        title(scored[0]),
                        f"{scale}: {scored[0]['steps']:,} of {scored[0]['recipe_steps']:,} steps",
                        ", ".join(str(run["seed"]) for run in scored),
                        protocol,
                        mean_and_deviation(errors),
                        number(paper.top1(protocol).get(member)),
                        "; ".join(dict.fromkeys(map(hardware, scored))),
                        ", ".join(dict.fromkeys(short(run["environment"]["commit"]) for run in scored)),
                    ]
                )
        found = whole_recipes(ledger)
        found += [sentence for name in _FINDINGS for sentence in degradation(name, scale, ledger).sentences]
        sentences += [f"At {scale} scale: {sentence}" for sentence in found]
        if by_network(ledger):
            sentences.append(f"[The report of the {scale} runs](results/{scale}/report.md) has the curves and more.")
    header = ["network", "scale", "seeds", "views", "top-1 error (%)", "the paper", "hardware", "commit"]
    blocks: list[Block] = [Table(header, rows)] if rows else []
    if not rows:
        blocks.append(Paragraph("No network has been trained for long enough yet to be compared with the paper's."))
    blocks += map(Paragraph, sentences)
    for record in _others(results, "score"):
        result = record["result"]
        blocks.append(
            Paragraph(
                f"{record['title']}: {result['top1_error']:.2f} % top-1 error here ({result['num_examples']:,} images "
                f"of {result['data']}'s {result['split']} split; commit {short(record['commit'])}): "
                f"`{record['command']}`"
            )
        )
    return blocks


def _speed(root: Path, results: Path) -> list[Block]:
    return speeds.steps(_others(results, "benchmark"))


def _input_speed(root: Path, results: Path) -> list[Block]:
    return speeds.inputs(_others(results, "benchmark"))


def _others(results: Path, kind: str) -> list[Record]:
    """All records of "score" or of "benchmark", by name."""
    found = [read_record(path) for path in sorted((results / FOLDERS[kind]).glob("*.json"))]
    return [record for record in found if record is not None]


def _ingredients(root: Path, results: Path) -> list[Block]:
    ledger = _ledger(root, results, "paper")
    blocks = section("ingredients", "paper", results / "paper", ledger)[1:]
    if not blocks:
        return [Paragraph("None has been run yet.")]
    runs = [run for run in ledger.values() if run.get("network") in _OTHERS]
    where = "; ".join(dict.fromkeys(map(hardware, runs)))
    commits = ", ".join(dict.fromkeys(short(run["environment"]["commit"]) for run in runs))
    return [*blocks, Paragraph(f"{where}; commit {commits}: `python reproduce.py ingredients --scale=paper`.")]


README = "README.md"
BLOCKS: dict[str, tuple[str, Callable[[Path, Path], list[Block]]]] = {
    "results": (README, _results),
    "speed": (README, _speed),
    "input speed": (README, _input_speed),
    "ingredients": ("docs/recipes.md", _ingredients),
}
"""The generated blocks: the document that each is in, and what makes it."""


def marks(name: str) -> tuple[str, str]:
    """The lines of its document that a generated block stands between."""
    return f"<!-- {name}, written by: python reproduce.py report --documents -->", f"<!-- end of {name} -->"


def with_blocks(document: str, text: str, root: Path, results: Path) -> str:
    """A document's text with all its generated blocks as the ledger has them.

    Raises UserError if a mark is not there.
    """
    for name, (place, make) in BLOCKS.items():
        if place != document:
            continue
        first, last = marks(name)
        before, found_first, rest = text.partition(first)
        _, found_last, after = rest.partition(last)
        if not (found_first and found_last):
            raise UserError(f"{document} has no lines {first} and {last}; put them where the block is to be")
        text = f"{before}{first}\n\n{to_markdown(make(root, results))}\n{last}{after}"
    return text


def update_documents(root: Path, results: Path) -> None:
    """Writes the generated blocks of all documents between their marks.

    Raises UserError if there are no results at all, which would empty the blocks, or if a mark is not there.
    """
    folders = (*SCALES, *FOLDERS.values())
    if not any(read_ledger(results, folder, lambda record: True) for folder in folders):
        raise UserError(f"there are no results in {results}; correct --results")
    for document in dict.fromkeys(document for document, _ in BLOCKS.values()):
        path = root / document
        text = with_blocks(document, path.read_text(), root, results)
        with replace_atomically(path) as file:
            file.write(text.encode())
