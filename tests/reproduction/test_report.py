import json
from pathlib import Path

import pytest

from reproduction import paper, report, sections
from reproduction.document import Heading, to_markdown
from reproduction.experiments import EXPERIMENTS, SCALES
from reproduction.ledger import imported, record_path, write_record
from reproduction.numerics import numerics_hash
from resnet_jax.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def quick_table_1(monkeypatch):
    """Counting the parameters of all networks takes a while, and test_sections.py does it."""
    monkeypatch.setattr(sections, "table1", lambda: [Heading("Table 1: architectures")])


def write(tmp_path, *records):
    for record in records:
        write_record(record_path(tmp_path, record["scale"], record["run"]), record)


def page_of(tmp_path, scale="medium"):
    page = report.write_report(ROOT, tmp_path, scale)
    assert page == tmp_path / scale / "report.html"
    return page.read_text(), (tmp_path / scale / "report.md").read_text()


def test_the_report_has_what_was_run_and_its_scale_and_nothing_else(tmp_path, make_record):
    write(tmp_path, make_record("plain20"), make_record("resnet20", responses={"stem": 1.0}))
    page, text = page_of(tmp_path)
    assert "Medium scale: 1/4 of the recipe's iterations" in text and "Medium scale" in page
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert [heading.split(":")[0] for heading in headings] == [
        *("Table 1", "Table 6", "Figure 1", "Figure 6", "Figure 7", "Runs", "Commands")
    ]
    assert "| plain20-seed0 | 60 | 100 | 2 cores of X | jax 1.2, flax 3.4 | 0123456 | not recorded |" in text
    assert "python train.py plain20 0" in text
    pictures = ["fig1-training-error", "fig6-plain-networks", "fig6-residual-networks", "fig7-in-order", "fig7-sorted"]
    for picture in pictures:
        assert f"({picture}.svg)" in text and (tmp_path / "medium" / f"{picture}.svg").stat().st_size > 1000


def test_the_report_opens_with_the_finding_and_its_picture_and_says_it_once(tmp_path, make_record):
    for name, train, top1 in (("plain20", 8, 9), ("plain56", 12, 13), ("resnet20", 7, 9), ("resnet56", 5, 8)):
        write(tmp_path, make_record(name, train=train, top1=top1))
    page, text = page_of(tmp_path)
    title, first, *_ = [line for line in text.splitlines() if line]
    assert title.startswith("# ") and first.startswith("**Deeper plain networks are worse: reproduced.")
    assert text.index("fig6-plain-networks.svg") < text.index("- [Table 1") < text.index("## Table 1")
    for sentence in ("Deeper plain networks are worse", "Deeper residual networks are better", "With shortcuts depth"):
        assert text.count(sentence) == page.count(sentence) == 1
    assert text.count("fig6-plain-networks.svg") == 1


def test_a_record_beside_changed_code_is_shown_as_such(tmp_path, make_record):
    today = numerics_hash(ROOT)
    records = [make_record("plain20", numerics=[today]), make_record("plain56", numerics=[today, "abc"])]
    for record in records:
        record["results"] = {"single": record["results"]["single"] | {"numerics": today}}
    write(tmp_path, *records)
    _, text = page_of(tmp_path)
    assert "| 0123456 | current |" in text and f"| {today}, abc |" in text
    assert "the same command may give other numbers now" in text
    (tmp_path / "medium" / "plain56-seed0.json").unlink()
    assert "other numbers" not in page_of(tmp_path)[1]


def test_a_score_by_other_code_than_the_training_is_shown_too(tmp_path, make_record):
    today = numerics_hash(ROOT)
    record = make_record("plain20", numerics=[today])
    record["results"]["single"] = record["results"]["single"] | {"numerics": "abc"}
    write(tmp_path, record)
    assert f"| {today}, abc |" in page_of(tmp_path)[1]


def test_a_smoke_report_is_quick_and_has_no_architectures(tmp_path):
    assert "Table 1" not in page_of(tmp_path, "smoke")[1]


def test_every_experiment_says_its_scale_even_where_nothing_has_been_run(tmp_path):
    for name in EXPERIMENTS:
        assert "Smoke scale" in to_markdown(report.one_section(ROOT, tmp_path, "smoke", name))


def empty(document):
    blocks = [name for name, (place, _) in report.BLOCKS.items() if place == document]
    lines = [line for name in blocks for line in (*report.marks(name), "between")]
    return "\n".join(["before", *lines, "after", ""])


def test_the_readme_gets_the_results_of_the_scales_that_can_show_something(tmp_path, make_record):
    write(tmp_path, make_record("plain20", 0, 30.0), make_record("plain20", 1, 31.0), make_record("plain56", 0, 40.0))
    write(tmp_path, make_record("resnet20", top1=19.0), make_record("resnet56"))
    write(tmp_path, make_record("resnet32", scale="small"))
    write(tmp_path, make_record("resnet20_mixup", scale="paper"))  # Not of the paper.
    text = report.with_blocks("README.md", empty("README.md"), ROOT, tmp_path)
    assert text.startswith("before\n") and text.endswith("between\nafter\n")
    line = "| plain-20 | medium: 60 of 1,200 steps | 0, 1 | single | 30.50 ± 0.71 |  | 2 cores of X | 0123456 |"
    assert line in text and "ResNet-32" not in text
    assert "At medium scale: Too short to tell what depth does: ResNet-20, the shallow network, is at 19.00 %" in text
    assert "paper scale" not in text and report.with_blocks("README.md", text, ROOT, tmp_path) == text


def test_ingredients_stand_in_the_recipes_and_not_in_the_reports(tmp_path, make_record):
    for seed, baseline, mixup in ((0, 20.0, 21.0), (1, 21.0, 21.5)):
        write(tmp_path, make_record("resnet20_baseline", seed, baseline, scale="paper"))
        write(tmp_path, make_record("resnet20_mixup", seed, mixup, scale="paper"))
    assert not report.has_records(ROOT, tmp_path, "paper")
    assert "from 0 finished runs" in page_of(tmp_path, "paper")[1]
    text = report.with_blocks("docs/recipes.md", empty("docs/recipes.md"), ROOT, tmp_path)
    assert "| baseline | 2 | 20.50 ± 0.71 |  |" in text and "| mixup | 2 | 21.25 ± 0.35 | 0.75 ± 0.35 |" in text
    assert "2 cores of X; commit 0123456: `python reproduce.py ingredients" in text


def test_the_readme_has_scores_and_speeds_of_the_ledger(tmp_path):
    printed = {"top1_error": 8.27, "num_examples": 10000, "data": "cifar10", "split": "test"}
    score = imported("public", printed, "python eval.py x", "Public weights", "0123456789", "1")
    write_record(record_path(tmp_path, "scores", "public"), score)
    speeds = {"suite": "cpu", "images_per_second": {"training, resnet20": {"ours": [20.0], "PyTorch": [10.0]}}}
    write_record(record_path(tmp_path, "benchmarks", "cpu"), imported("cpu", speeds, "c", "", None, "1"))
    text = report.with_blocks("README.md", empty("README.md"), ROOT, tmp_path)
    assert "Public weights: 8.27 % top-1 error here (10,000 images of cifar10's test split; commit 0123456)" in text
    assert "resnet_jax trains resnet20 at 2.00 times" in text


def test_a_readme_without_its_marks_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"README.md has no lines .*put them where"):
        report.with_blocks("README.md", "no marks", ROOT, tmp_path)


@pytest.mark.parametrize("document", sorted({place for place, _ in report.BLOCKS.values()}))
def test_the_documents_own_results_and_speeds_are_those_of_the_ledger(document):
    text = (ROOT / document).read_text()
    assert text == report.with_blocks(document, text, ROOT, ROOT / "results"), (
        "run python reproduce.py report --documents, which writes them anew"
    )


def error(name):
    """Percent of test error of a run of the ledger."""
    return json.loads((ROOT / "results" / f"{name}.json").read_text())["results"]["single"]["top1_error"]


def speed(suite, network):
    """Our images/s in a comparison of the ledger."""
    comparisons = json.loads((ROOT / "results" / "benchmarks" / f"{suite}.json").read_text())["comparisons"]
    (sides,) = (each["sides"] for name, each in comparisons.items() if network in name)
    return sides["ours"]["median"]


def public_error():
    return json.loads((ROOT / "results" / "scores" / "resnet20-akamaster.json").read_text())["result"]["top1_error"]


@pytest.mark.parametrize(
    ("document", "sentence", "figures"),
    [
        (
            "README.md",
            "whole recipe ({:.2f} % test error; the paper's has {:.2f} %) ships",
            lambda: (error("paper/resnet20-seed0"), paper.top1("single")["resnet20"]),
        ),
        ("docs/finetuning.md", "its own head has {:.2f} % error on all", lambda: (public_error(),)),
        ("docs/scaling.md", "at the {:,.0f} images/s of one H200", lambda: (speed("gpu", "resnet50"),)),
        ("docs/performance.md", "the {:,.0f} images/s of the README", lambda: (speed("cpu", "resnet20"),)),
        ("docs/recipes.md", "the README has {:.1f} images/s", lambda: (speed("cpu", "resnet50"),)),
        (
            "docs/reliability.md",
            "at {:.1f} and {:.1f} % test error where ResNet-20 has {:.1f} and {:.1f},",
            lambda: [error(f"medium/{network}-seed{seed}") for network in ("resnet56", "resnet20") for seed in (0, 1)],
        ),
    ],
)
def test_figures_that_a_text_repeats_are_those_of_the_ledger(document, sentence, figures):
    assert sentence.format(*figures()) in " ".join((ROOT / document).read_text().split())


def test_the_generated_blocks_are_written_into_their_documents(tmp_path):
    for document in ("README.md", "docs/recipes.md"):
        (tmp_path / document).parent.mkdir(exist_ok=True)
        (tmp_path / document).write_text((ROOT / document).read_text().replace("ResNet-20 |", "ResNet-21 |"))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    report.update_documents(tmp_path, ROOT / "results")
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text()


def test_every_record_of_the_ledger_is_sound_and_of_today_s_settings(capsys):
    ledgers = {scale: report._ledger(ROOT, ROOT / "results", scale) for scale in SCALES}
    for path in (ROOT / "results").glob("*/*.json"):
        record = json.loads(path.read_text())
        assert path.parent.name == record.get(
            "scale", {"score": "scores", "benchmark": "benchmarks"}.get(record["kind"])
        )
        if "scale" in record:
            assert path.stem in ledgers[record["scale"]]
    assert "left out" not in capsys.readouterr().err


def test_without_any_results_no_document_is_changed(tmp_path):
    (tmp_path / "README.md").write_text(empty("README.md"))
    with pytest.raises(UserError, match=r"there are no results in .*nowhere; correct --results"):
        report.update_documents(tmp_path, tmp_path / "nowhere")
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "config.json").write_text("{}")  # As a folder of workdirs has them.
    with pytest.raises(UserError, match="there are no results"):
        report.update_documents(tmp_path, tmp_path)
    assert (tmp_path / "README.md").read_text() == empty("README.md")
