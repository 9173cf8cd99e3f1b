from pathlib import Path

import pytest

from resnet_jax.errors import UserError
from resnet_jax.reproduction import report
from resnet_jax.reproduction.document import to_markdown
from resnet_jax.reproduction.experiments import EXPERIMENTS
from resnet_jax.reproduction.ledger import record_path, write_record

ROOT = Path(__file__).resolve().parent.parent.parent


def write(tmp_path, *records):
    for record in records:
        write_record(record_path(tmp_path, "small", record["run"]), record)


def test_the_report_has_what_was_run_and_its_scale_and_nothing_else(tmp_path, make_record):
    write(tmp_path, make_record("plain20"), make_record("resnet20", responses={"stem": 1.0}))
    page = report.write_report(ROOT, tmp_path, "small")
    assert page == tmp_path / "small" / "report.html"
    text = (tmp_path / "small" / "report.md").read_text()
    assert "A SMALL run: 1/20 of the paper's iterations" in text and "A SMALL run" in page.read_text()
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert [heading.split(":")[0] for heading in headings] == [
        *("Table 1", "Table 6", "Figure 1", "Figure 6", "Figure 7", "Runs", "Commands")
    ]
    assert "| plain20-seed0 | 60 | 100 | 2 cores of X | jax 1.2, flax 3.4 | 0123456789 |" in text
    assert "python train.py plain20 0" in text
    for picture in ("fig1.png", "fig6.png", "fig7.png"):
        assert f"({picture})" in text and (tmp_path / "small" / picture).stat().st_size > 1000


def test_every_experiment_says_its_scale_even_where_nothing_has_been_run(tmp_path):
    for name in EXPERIMENTS:
        assert "A SMOKE run" in to_markdown(report.one_section(ROOT, tmp_path, "smoke", name))


def test_the_readme_gets_the_table_of_all_scales_between_its_marks(tmp_path, make_record):
    write(tmp_path, make_record("plain20", 0, 30.0), make_record("plain20", 1, 31.0), make_record("plain56", 0, 40.0))
    readme, (first, last) = tmp_path / "README.md", report.README_MARKS
    readme.write_text(f"before\n{first}\nold\n{last}\nafter\n")
    report.update_readme(readme, ROOT, tmp_path)
    text = readme.read_text()
    assert text.startswith(f"before\n{first}\n") and text.endswith(f"{last}\nafter\n") and "old" not in text
    assert "| plain-20 | small: 60 of 1,200 steps | 0, 1 | single | 30.50 ± 0.71 |  | 2 cores of X |" in text
    assert "At small scale: Deeper plain networks are worse: not seen." in text  # The training errors are equal.
    report.update_readme(readme, ROOT, tmp_path)
    assert readme.read_text() == text
    readme.write_text("no marks")
    with pytest.raises(UserError, match=r"README\.md has no lines"):
        report.update_readme(readme, ROOT, tmp_path)


def test_the_readme_s_own_table_is_that_of_the_ledger():
    text = (ROOT / "README.md").read_text()
    _, _, rest = text.partition(report.README_MARKS[0])
    table, mark, _ = rest.partition(report.README_MARKS[1])
    assert mark and table.strip() == report.readme_results(ROOT, ROOT / "results").strip()
