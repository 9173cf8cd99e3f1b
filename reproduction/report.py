"""The report of a scale, and the README's generated blocks: our numbers beside the paper's, out of the ledger."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from reproduction import detection, paper, speeds
from reproduction.claims import DISTANCE, degradation
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
from reproduction.running import is_current
from reproduction.runs import by_network, title
from reproduction.sections import section
from resnet_jax.errors import UserError
from resnet_jax.files import replace_atomically

_FINDINGS = ("fig6", "fig4")  # What a report opens with: the first that has been run.
_COMMAND = "python reproduce.py report --readme=README.md"


def write_report(root: Path, results: Path, scale: str) -> Path:
    """Writes RESULTS/SCALE/report.html, which needs no other file, and report.md with its pictures beside it.

    ``root`` is the checkout, whose configs tell which records are of today's settings; the others are left out.
    """
    folder = results / scale
    folder.mkdir(parents=True, exist_ok=True)
    blocks = _blocks(root, folder, scale, _ledger(root, results, scale))
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


def _ledger(root: Path, results: Path, scale: str) -> dict[str, Record]:
    return read_ledger(results, scale, partial(is_current, root, scale))


def _blocks(root: Path, folder: Path, scale: str, ledger: Mapping[str, Record]) -> list[Block]:
    trained = sum(record["kind"] == "run" for record in ledger.values())
    sections = {
        name: section(name, scale, folder, ledger) for name in EXPERIMENTS if scale != "smoke" or name != "table1"
    }
    first = next((name for name in _FINDINGS if sections[name]), None)
    found = degradation(first, scale, ledger).sentences if first else []
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
    for name in EXPERIMENTS:
        blocks += sections.get(name, [])
    for table in detection.TABLES:
        blocks += detection.section(table, scale, ledger)
    return blocks + _runs(root, ledger)


_RULE = (
    "A difference is ours less the paper's, where both are of the same split. What depth does is only said where "
    "training was long enough: the shallow network of each pair must have come within "
    f"{DISTANCE:g} percentage points of its published error. No error of plain-20 is published as a number; there "
    "ResNet-20's stands for both."
)


def _runs(root: Path, ledger: Mapping[str, Record]) -> list[Block]:
    trained = [record for record in ledger.values() if record["kind"] == "run"]
    if not trained:
        return []
    today, rows, others = numerics_hash(root), [], False
    for record in trained:
        environment = record["environment"]
        versions = environment["packages"]
        codes = [*record["numerics"], *(result.get("numerics", "") for result in record["results"].values())]
        same = bool(record["numerics"]) and set(codes) == {today}
        others = others or not same
        rows.append(
            [
                record["run"],
                f"{record['steps']:,}",
                f"{record['images_per_second']:.0f}",
                hardware(record),
                f"jax {versions['jax']}, flax {versions['flax']}",
                short(environment["commit"]),
                "today's" if same else f"other ({', '.join(dict.fromkeys(filter(None, codes))) or 'not recorded'})",
            ]
        )
    lines = [line for record in ledger.values() for line in record["commands"].values()]
    note = (
        " Runs of other code than today's may differ from what the same command gives now: since then something was "
        f"changed in the modules that compute numbers, whose hash is {today} today."
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


# The README.


def _results(root: Path, results: Path) -> list[Block]:
    """The networks trained at a length that can show something, beside the paper's error on the same views.

    Below stands what they say of degradation, and how given weights score.
    """
    rows, sentences = [], []
    for scale in (scale for scale in SCALES if SCALES[scale].verdicts):
        ledger = _ledger(root, results, scale)
        for member, runs in by_network(ledger).items():
            if member in EXPERIMENTS["ingredients"].networks:  # They have a table of their own in the report.
                continue
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
        found = [sentence for name in _FINDINGS for sentence in degradation(name, scale, ledger).sentences]
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


README_BLOCKS: dict[str, Callable[[Path, Path], list[Block]]] = {
    "results": _results,
    "speed": _speed,
    "input speed": _input_speed,
}


def marks(name: str) -> tuple[str, str]:
    """The lines of the README that a generated block stands between."""
    return f"<!-- {name}, written by: {_COMMAND} -->", f"<!-- end of {name} -->"


def with_blocks(text: str, root: Path, results: Path) -> str:
    """A README with all its generated blocks as the ledger has them. Raises UserError if a mark is not there."""
    for name, make in README_BLOCKS.items():
        first, last = marks(name)
        before, found_first, rest = text.partition(first)
        _, found_last, after = rest.partition(last)
        if not (found_first and found_last):
            raise UserError(f"the README has no lines {first} and {last}; put them where the block is to be")
        text = f"{before}{first}\n\n{to_markdown(make(root, results))}\n{last}{after}"
    return text


def update_readme(readme: Path, root: Path, results: Path) -> None:
    """Writes the generated blocks between their marks. Raises UserError if a mark is not there."""
    text = with_blocks(readme.read_text(), root, results)
    with replace_atomically(readme) as file:
        file.write(text.encode())
