"""What programs are called with, and what is compared afterwards: a folder before and after, and the error."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

QUICKSTART = str(ROOT / "configs" / "quickstart.py")
# With the normalisation that published weights want, or a note would say so.
TINY = (
    *("--config", QUICKSTART, "--config.model.stage_sizes=(1,)", "--config.model.width=4"),
    "--config.normalization.name=channel",
)


def snapshot(folder):
    every = sorted(folder.rglob("*"))
    return [(path, path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None) for path in every]


def the_error(stderr):
    """The one ``error: `` line, which is also all there is."""
    (line,) = stderr.splitlines()
    assert line.startswith("error: ")
    return line
