"""A document of headings, paragraphs, tables, pictures and commands, as Markdown or as one HTML file."""

import base64
import html
from pathlib import Path
from typing import NamedTuple, TypeAlias


class Heading(NamedTuple):
    """``level`` 1 is the title's."""

    text: str
    level: int = 2


class Paragraph(NamedTuple):
    """``strong``: what nobody should miss."""

    text: str
    strong: bool = False


class Table(NamedTuple):
    """Cells as text. The first column is the name of the row."""

    header: list[str]
    rows: list[list[str]]


class Picture(NamedTuple):
    """A PNG file, and what it shows in words."""

    path: Path
    caption: str


class Commands(NamedTuple):
    """Lines of a shell."""

    text: str


Block: TypeAlias = Heading | Paragraph | Table | Picture | Commands


def to_markdown(blocks: list[Block]) -> str:
    """Pictures are linked by their file names: the text belongs into their folder."""
    parts = []
    for block in blocks:
        match block:
            case Heading(text, level):
                parts.append(f"{'#' * level} {text}")
            case Paragraph(text, strong):
                parts.append(f"**{text}**" if strong else text)
            case Table(header, rows):
                lines = [header, ["---"] * len(header), *rows]
                parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
            case Picture(path, caption):
                parts.append(f"![{caption}]({path.name})\n\n*{caption}*")
            case Commands(text):
                parts.append(f"```sh\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def to_html(blocks: list[Block]) -> str:
    """Self-contained: style and pictures are inside."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "")
    body = "\n".join(_html(block) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>\n{_STYLE}</style>\n</head>\n'
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Paragraph(text, strong):
            return f'<p class="{"strong" if strong else "plain"}">{html.escape(text)}</p>'
        case Table(header, rows):
            head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
            lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
            body = "\n".join(f"<tr>{line}</tr>" for line in lines)
            return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
        case Picture(path, caption):
            data = base64.b64encode(path.read_bytes()).decode()
            text = html.escape(caption)
            image = f'<img src="data:image/png;base64,{data}" alt="{text}">'
            return f"<figure>{image}<figcaption>{text}</figcaption></figure>"
        case Commands(text):
            return f"<pre>{html.escape(text)}</pre>"


_STYLE = """\
:root { color-scheme: light; --ink: #1d2430; --soft: #5d6878; --line: #dde2ea; --accent: #a4331f; }
body { margin: 0; background: #f5f6f8; color: var(--ink); font: 16px/1.6 "Source Serif 4", Georgia, serif; }
main { max-width: 68rem; margin: 2rem auto; padding: 2.5rem 3.5rem 4rem; background: #fff; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .75rem; padding-top: 1.25rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p { margin: .75rem 0; max-width: 46rem; }
p.strong { padding: .75rem 1rem; border-left: 4px solid var(--accent); background: #fbf3f1; }
.wide { overflow-x: auto; margin: 1.25rem 0; }
table { border-collapse: collapse; font: 14px/1.45 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--ink); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody tr:hover { background: #f7f9fc; }
figure { margin: 1.5rem 0; }
img { max-width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .9rem; }
pre { overflow-x: auto; padding: 1rem; background: #f3f5f8; font: 12.5px/1.55 ui-monospace, Menlo, monospace; }
@media (max-width: 40rem) { main { margin: 0; padding: 1.25rem; border: 0; } }
"""
