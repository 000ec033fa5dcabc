"""A page of text, tables and pictures: as HTML in one file that needs no network, and as Markdown beside PNG files."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

from datamodules.files import write_whole

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #eee }
th:first-child, td:first-child { text-align: left }
img { max-width: 100%; height: auto; display: block; margin: .8rem 0 }
code { background: #f4f4f4; padding: .1rem .3rem } .scroll { overflow-x: auto }
@media (prefers-color-scheme: dark) {
  body { background: #1b1b1b; color: #ddd } th, td, h2 { border-color: #444 } code { background: #333 }
}
""".strip()


@dataclass(frozen=True)
class Table:
    """Cells are text; the first column begins at the left, the others end at the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A PNG."""

    name: str
    """Name of its file, without ending."""
    content: bytes
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it: text, tables, pictures, in this order."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class Page:
    """A page: title, paragraphs, sections, and the command that makes it."""

    title: str
    lead: Sequence[str]
    """Paragraphs."""
    sections: list[Section] = field(default_factory=list)
    command: str = ""
    """Command that makes the page again."""


def as_html(page: Page) -> str:
    """Return the page as one file; pictures are inside."""
    title = html.escape(page.title)
    parts = [
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>\n{STYLE}\n</style>\n</head>\n<body>\n<h1>{title}</h1>",
        *(_paragraph(text) for text in page.lead),
    ]
    for section in page.sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        parts += [_paragraph(text) for text in section.text.split("\n\n") if text]
        parts += [_html_table(table) for table in section.tables]
        for picture in section.pictures:
            source = f"data:image/png;base64,{base64.b64encode(picture.content).decode()}"
            caption = html.escape(picture.caption)
            parts.append(f'<figure><figcaption>{caption}</figcaption><img src="{source}" alt="{caption}"></figure>')
    if page.command:
        parts.append(f"<p>Made by <code>{html.escape(page.command)}</code></p>")
    return "\n".join([*parts, "</body>\n</html>\n"])


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _html_table(table: Table) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    rows = "\n".join(line(cells, "td") for cells in table.rows)
    head = line(table.head, "th")
    return f'<div class="scroll"><table>\n<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'


def as_markdown(page: Page, folder: str = "") -> str:
    """Return the page as text that names its pictures as ``<folder><name>.png``."""
    parts = [f"# {page.title}", *page.lead]
    for section in page.sections:
        parts += [f"## {section.title}", section.text]
        parts += [_markdown_table(table) for table in section.tables]
        parts += [f"{each.caption}\n\n![{each.caption}]({folder}{each.name}.png)" for each in section.pictures]
    if page.command:
        parts.append(f"Made by `{page.command}`.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(table: Table) -> str:
    cells = [[cell.replace("|", "/") for cell in line] for line in (table.head, *table.rows)]
    align = ("left", *["right"] * (len(table.head) - 1))
    return tabulate(cells[1:], cells[0], tablefmt="pipe", disable_numparse=True, colalign=align)


def write_page(page: Page, folder: Path, stem: str) -> tuple[Path, Path]:
    """Write ``<stem>.html`` and ``<stem>.md`` with its pictures into a folder; an earlier page is replaced."""
    web, text = folder / f"{stem}.html", folder / f"{stem}.md"
    for section in page.sections:
        for picture in section.pictures:
            write_whole(folder / f"{stem}_{picture.name}.png", picture.content)
    write_whole(web, as_html(page))
    write_whole(text, as_markdown(page, f"{stem}_"))
    return web, text
