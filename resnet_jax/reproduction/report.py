"""The report of a scale, and the README's results: the tables and figures beside the paper's, out of the ledger."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from resnet_jax.errors import UserError
from resnet_jax.files import replace_atomically
from resnet_jax.reproduction import paper
from resnet_jax.reproduction.document import Block, Commands, Heading, Paragraph, Table, to_html, to_markdown
from resnet_jax.reproduction.experiments import EXPERIMENTS, SCALES, label
from resnet_jax.reproduction.ledger import Record, read_ledger
from resnet_jax.reproduction.running import is_current
from resnet_jax.reproduction.sections import (
    by_network,
    degradation,
    found_runs,
    hardware,
    mean_and_deviation,
    number,
    section,
)

README_MARKS = (
    "<!-- results, written by: python reproduce.py report --scale=small --readme=README.md -->",
    "<!-- end of results -->",
)


def write_report(root: Path, results: Path, scale: str) -> Path:
    """Writes RESULTS/SCALE/report.html, which needs no other file, and report.md with its pictures beside it.

    ``root`` is the checkout, whose configs tell which records are of today's settings; the others are left out.
    """
    folder = results / scale
    folder.mkdir(parents=True, exist_ok=True)
    blocks = _blocks(folder, scale, _ledger(root, results, scale))
    for name, text in (("report.html", to_html(blocks)), ("report.md", to_markdown(blocks))):
        with replace_atomically(folder / name) as file:
            file.write(text.encode())
    return folder / "report.html"


def readme_results(root: Path, results: Path) -> str:
    """Every network of the ledger, but for smoke runs, beside the paper's error on the same views; Markdown.

    Below stands what the runs on CIFAR-10 say of degradation.
    """
    of_paper = {"single": paper.TABLE_6, "ten_crop": paper.TABLE_2 | paper.TABLE_3, "multi_scale": paper.TABLE_4}
    rows = []
    for scale in ("paper", "small"):
        for network, runs in by_network(_ledger(root, results, scale)).items():
            for protocol, published in of_paper.items():
                scored = [run for run in runs if protocol in run["results"]]
                if scored:
                    values = [run["results"][protocol]["top1_error"] for run in scored]
                    rows.append(
                        [
                            label(network),
                            f"{scale}: {scored[0]['steps']:,} of {scored[0]['recipe_steps']:,} steps",
                            ", ".join(str(run["seed"]) for run in scored),
                            protocol,
                            mean_and_deviation(values),
                            number(published.get(network, paper.Error(None)).top1),
                            "; ".join(dict.fromkeys(map(hardware, scored))),
                        ]
                    )
    header = ["network", "scale", "seeds", "views", "top-1 error (%)", "the paper", "hardware"]
    blocks: list[Block] = [Table(header, rows)]
    for scale in ("paper", "small"):
        found, _ = found_runs("fig6", _ledger(root, results, scale))
        blocks += [Paragraph(f"At {scale} scale: {sentence}") for sentence in degradation(found)]
    return to_markdown(blocks)


def update_readme(readme: Path, root: Path, results: Path) -> None:
    """Writes the table between its two marks. Raises UserError if they are not there."""
    text = readme.read_text()
    before, first, rest = text.partition(README_MARKS[0])
    _, last, after = rest.partition(README_MARKS[1])
    if not (first and last):
        raise UserError(f"{readme} has no lines {' and '.join(README_MARKS)}; put them where the table is to be")
    with replace_atomically(readme) as file:
        file.write(f"{before}{first}\n\n{readme_results(root, results)}\n{last}{after}".encode())


def one_section(root: Path, results: Path, scale: str, name: str) -> list[Block]:
    """A single table or figure, under the statement of its scale."""
    (results / scale).mkdir(parents=True, exist_ok=True)
    ledger = _ledger(root, results, scale)
    blocks = section(name, scale, results / scale, ledger)
    return [*blocks[:1], Paragraph(SCALES[scale].statement, strong=True), *blocks[1:]]


def _ledger(root: Path, results: Path, scale: str) -> dict[str, Record]:
    return read_ledger(results, scale, partial(is_current, root, scale))


def _blocks(folder: Path, scale: str, ledger: Mapping[str, Record]) -> list[Block]:
    trained = sum("network" in record for record in ledger.values())
    blocks: list[Block] = [
        Heading(f"Deep Residual Learning, reproduced at {scale} scale", 1),
        Paragraph(SCALES[scale].statement, strong=True),
        Paragraph(
            f"Tables and figures of He, Zhang, Ren and Sun (arXiv 1512.03385), from {trained} finished runs. Errors "
            "are in percent. A difference is ours less the paper's. What has not been run is left out."
        ),
    ]
    for name in EXPERIMENTS:
        blocks += section(name, scale, folder, ledger)
    return blocks + _runs(ledger)


def _runs(ledger: Mapping[str, Record]) -> list[Block]:
    trained = [record for record in ledger.values() if "network" in record]
    if not trained:
        return []
    rows = []
    for record in trained:
        environment = record["environment"]
        versions = environment["packages"]
        rows.append(
            [
                record["run"],
                f"{record['steps']:,}",
                f"{record['images_per_second']:.0f}",
                hardware(record),
                f"jax {versions['jax']}, flax {versions['flax']}",
                (environment["commit"] or "unknown")[:10],
            ]
        )
    lines = [line for record in ledger.values() for line in record["commands"].values()]
    return [
        Heading("Runs"),
        Paragraph("Images/s are medians over the run, beside whatever else the machine did. Every run is resumable."),
        Table(["run", "steps", "images/s", "hardware", "versions", "commit"], rows),
        Heading("Commands"),
        Commands("\n".join(lines)),
    ]
