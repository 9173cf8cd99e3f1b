"""A document of headings, paragraphs, tables, pictures and commands, as Markdown or as one HTML file."""

import html
import re
import textwrap
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias


class Heading(NamedTuple):
    """``level`` 1 is the title's; those of level 2 make the contents list."""

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
    """SVG files, which stand side by side where there is room, and what they show in words."""

    paths: list[Path]
    caption: str


class Commands(NamedTuple):
    """Lines of a shell."""

    text: str


class Contents(NamedTuple):
    """The contents list."""


Block: TypeAlias = Heading | Paragraph | Table | Picture | Commands | Contents


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
            case Picture(paths, caption):
                pictures = "\n".join(f"![{path.stem.replace('-', ' ')}]({path.name})" for path in paths)
                parts.append(f"{pictures}\n\n*{caption}*")
            case Commands(text):
                commands = [" \\\n    ".join(_wrapped(line)) for line in text.splitlines()]
                parts.append("```sh\n{}\n```".format("\n".join(commands)))
            case Contents():
                parts.append("\n".join(f"- [{text}](#{_anchor(text)})" for text in _chapters(blocks)))
    return "\n\n".join(parts) + "\n"


_wrapped = partial(textwrap.wrap, width=110, break_long_words=False, break_on_hyphens=False)


def to_html(blocks: list[Block]) -> str:
    """Self-contained: style and pictures are inside."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "")
    body = "\n".join(_html(block, blocks) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>\n{_STYLE}</style>\n</head>\n'
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _html(block: Block, blocks: list[Block]) -> str:
    match block:
        case Heading(text, level):
            return f'<h{level} id="{_anchor(text)}">{html.escape(text)}</h{level}>'
        case Paragraph(text, strong):
            unbroken = re.sub(r"(?<=[A-Za-z])-(?=\d)", "\N{NON-BREAKING HYPHEN}", text)  # "plain-20" stays on a line.
            return f"<p{' class=strong' if strong else ''}>{html.escape(unbroken)}</p>"
        case Table(header, rows):
            lines = [_row("td", row) for row in rows]
            table = f"<table><thead>{_row('th', header)}</thead><tbody>{''.join(lines)}</tbody></table>"
            return f'<div class="wide" tabindex="0">{table}</div>'
        case Picture(paths, caption):
            drawings = "".join(f"<div>{_inline(path)}</div>" for path in paths)
            below = f"<figcaption>{html.escape(caption)}</figcaption>"
            return f'<figure><div class="pictures">{drawings}</div>{below}</figure>'
        case Commands(text):
            commands = [line.split(" ") for line in text.splitlines()]
            lines = [" ".join(f"<span>{html.escape(word)}</span>" for word in words) for words in commands]
            return f"<pre>{''.join(f'<code>{line}</code>' for line in lines)}</pre>"
        case Contents():
            links = "".join(
                f'<li><a href="#{_anchor(text)}">{html.escape(text)}</a></li>' for text in _chapters(blocks)
            )
            return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'


def _row(tag: str, cells: list[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _inline(path: Path) -> str:
    """The drawing of an SVG file, without what only a file of its own has; it is as wide as its place."""
    drawing = re.search(r"<svg.*</svg>", path.read_text(), re.DOTALL)
    text = drawing[0] if drawing else ""
    tag, closing, rest = text.partition(">")
    tag = re.sub(r'\s(width|height)="[^"]*"', "", tag)
    return f'{tag} role="img" aria-label="{html.escape(path.stem)}"{closing}{rest}'


def _chapters(blocks: list[Block]) -> list[str]:
    return [block.text for block in blocks if isinstance(block, Heading) and block.level == 2]


def _anchor(text: str) -> str:
    """As GitHub makes them out of headings."""
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


_STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --accent: #a83a22; --paper: #fff; --wash: #f4f6f9; }
* { box-sizing: border-box; }
html { font-size: clamp(16px, 12px + .45vw, 20px); scroll-behavior: smooth; }
body { margin: 0; background: var(--paper); color: var(--ink); }
body { font: 1rem/1.6 system-ui, "Segoe UI", Helvetica, sans-serif; }
main { padding: 2rem clamp(1rem, 4vw, 4rem) 4rem; }
h1 { margin: 0 0 1rem; font-size: clamp(1.6rem, 3.2vw, 2.5rem); line-height: 1.2; letter-spacing: -.01em; }
h2 { margin: 3.5rem 0 .75rem; padding-top: 1.25rem; border-top: 1px solid var(--line); font-size: 1.4rem; }
h3 { margin: 2rem 0 .5rem; font-size: 1.1rem; }
p { margin: .75rem 0; max-width: 100ch; }
p.strong { margin: 1rem 0; padding: .1rem 0 .1rem 1rem; border-left: 4px solid var(--accent); font-size: 1.15rem; }
nav { margin: 2rem 0; padding: 1rem 1.25rem; background: var(--wash); }
nav ul { margin: 0; padding: 0; list-style: none; columns: 22rem; column-gap: 2rem; }
nav li { padding: .15rem 0; break-inside: avoid; }
a { color: var(--accent); text-decoration-thickness: 1px; text-underline-offset: 2px; }
.wide { overflow-x: auto; margin: 1.25rem 0; }
table { width: 100%; border-collapse: collapse; font-size: .94rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .75rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
td { white-space: nowrap; }
th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--ink); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody tr:hover { background: var(--wash); }
figure { margin: 1.5rem 0; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; }
.pictures svg { display: block; width: 100%; height: auto; }
figcaption { margin-top: .5rem; max-width: 100ch; color: var(--soft); font-size: .94rem; }
pre { padding: 1rem; background: var(--wash); font: 13px/1.6 ui-monospace, Menlo, Consolas, monospace; }
pre { white-space: normal; }
pre code { display: block; margin: 0 0 .6em; padding-left: 2em; text-indent: -2em; font: inherit; }
pre span { display: inline-block; max-width: 100%; text-indent: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  th, td { padding: .35rem .5rem; }
}
"""
