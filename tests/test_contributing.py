"""The examples of CONTRIBUTING.md work: each is applied to a copy of the project, and its commands are run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = re.findall(
    r"^#{3,4} (An? .*|With .*)\n((?:.*\n)*?)(?=^##|\Z)", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def apply_file(project: Path, code: str) -> None:
    first, _, rest = code.partition("\n")
    path = project / first.removeprefix("# ")
    assert not path.exists(), f"{path} exists already"
    path.write_text(rest)


def apply_diff(project: Path, diff: str) -> None:
    first, _, rest = diff.partition("\n")
    path = project / first.strip().removeprefix("# ")
    text = path.read_text()
    for hunk in rest.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] or "\n" for line in lines if not line.startswith("+"))
        new = "".join(line[1:] or "\n" for line in lines if not line.startswith("-"))
        assert text.count(old) == 1, f"{path} has these lines {text.count(old)} times:\n{old}"
        text = text.replace(old, new)
    path.write_text(text)


def apply(project: Path, section: str) -> list[str]:
    """Makes the section's changes and returns its shell commands."""
    commands = []
    for kind, content in BLOCK.findall(section):
        if kind == "python":
            apply_file(project, content)
        elif kind == "diff":
            apply_diff(project, content)
        else:
            commands.append(content)
    assert commands
    return commands


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project."""
    copy = tmp_path / "project"
    copy.mkdir()
    for name in ("resnet_jax", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "eval.py", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.mark.parametrize("title", [title for title, _ in SECTIONS])
def test_the_changes_of_an_example_still_apply(title: str, project: Path) -> None:
    apply(project, dict(SECTIONS)[title])


@pytest.mark.slow
@pytest.mark.parametrize("title", [title for title, _ in SECTIONS])
def test_example(title: str, project: Path) -> None:
    commands = apply(project, dict(SECTIONS)[title])
    environment = os.environ | {
        "XLA_FLAGS": "",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(project),
    }
    for command in commands:
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command], cwd=project, env=environment, capture_output=True, text=True
        )
        assert ran.returncode == 0, f"{command}\n{ran.stderr}"
    assert "trained to step 10" in ran.stderr or '"num_examples"' in ran.stdout


def test_there_is_an_example_for_each_part() -> None:
    assert len(SECTIONS) == 9
