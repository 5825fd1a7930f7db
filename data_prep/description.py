"""What `data_prep.describe` found, as text for a terminal and as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vjepa.errors import UserError

if TYPE_CHECKING:
    from data_prep.contact_sheet import Sheet

_NAME_LETTERS: Final = 60  # of the first column in the text; the page wraps
_NUMBER: Final = re.compile(r"|[0-9][0-9.,e+-]*( ?(%|s|min|h|[KMGT]?i?B))?")
_DOCTYPE: Final = "<!doctype html>"
# The policy is a second wall behind the escaping: a page that holds names of strangers' files runs and loads nothing.
_HEAD: Final = f"""{_DOCTYPE}
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>%s</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff;
max-width: 1100px; margin: 0 auto; padding: 12px; }}
h1 {{ font-size: 1.25em; overflow-wrap: anywhere; }}
h2 {{ font-size: 1em; margin: 1.4em 0 .3em; }}
.tables {{ columns: 2 440px; column-gap: 36px; }}
section {{ break-inside: avoid; overflow-x: auto; }}
section.wide {{ column-span: all; }}
table {{ border-collapse: collapse; width: 100%%; }}
th, td {{ text-align: left; vertical-align: top; padding: 2px 8px 2px 0; border-bottom: 1px solid #e4e4e4; }}
th {{ font-weight: 600; color: #666; white-space: nowrap; }}
td:first-child {{ overflow-wrap: anywhere; min-width: 7em; }}
.number {{ text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }}
.share {{ width: 25%%; background: linear-gradient(#cfe0f5, #cfe0f5) no-repeat 0 0 / var(--share) 100%%; }}
.warnings {{ background: #fff4d6; border-left: 4px solid #e0a800; padding: 8px 8px 8px 28px; overflow-wrap: anywhere; }}
.note, ol {{ color: #555; overflow-wrap: anywhere; }}
img {{ max-width: 100%%; height: auto; }}
</style>
</head>
<body>
"""


@dataclass(frozen=True)
class Table:
    """One part of a description. A table without rows is not shown."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def is_number(self, column: int) -> bool:
        """Whether each cell of a column is a number, with or without a unit, or empty: such columns are aligned on the
        right.
        """
        return column > 0 and all(_NUMBER.fullmatch(row[column]) for row in self.rows)


@dataclass(frozen=True)
class Description:
    """title: the index and the rows that are described. warnings: what to mend before training, one sentence each."""

    title: str
    warnings: tuple[str, ...]
    tables: tuple[Table, ...]


def text(description: Description) -> str:
    """For a terminal; names of files cannot move its cursor."""
    lines = [description.title, *(f"WARNING: {warning}" for warning in description.warnings)]
    for table in description.tables:
        lines += ["", table.title, *_aligned(table), *(f"  {note}" for note in table.notes)]
    return "\n".join(printable(line) for line in lines)


def page(description: Description, sheet: Sheet | None) -> str:
    """One HTML page with everything inside; without `sheet` there are no pictures."""
    title = escape(printable(description.title))
    parts = [_HEAD % title, f"<h1>{title}</h1>\n"]
    if description.warnings:
        parts.append(f'<ul class="warnings">\n{_items(description.warnings)}</ul>\n')
    parts += ['<div class="tables">\n', *map(_section, description.tables), "</div>\n"]
    if sheet:
        picture = base64.b64encode(sheet.jpeg).decode()
        named = [
            f"{clip.row.uri}: row {clip.row.clip_id}" + (f", {clip.reason}" if clip.reason else "")
            for clip in sheet.clips
        ]
        parts.append(
            f'<h2>Contact sheet: frames of {len(named)} usable clips</h2>\n<img alt="frames of the clips that '
            'are named below" '
        )
        parts.append(f'src="data:image/jpeg;base64,{picture}">\n<ol>\n{_items(named)}</ol>\n')
    return "".join([*parts, "</body>\n</html>\n"])


def check_page(path: Path) -> None:
    """Before the work is done. Raises UserError where a page cannot be written to `path`, or another kind of file is
    there.
    """
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--html {path}: cannot be written; give a file name in a folder that exists")
    if path.exists() and not path.read_bytes()[: len(_DOCTYPE)].lower().startswith(_DOCTYPE.encode()):
        raise UserError(f"--html {path}: exists and is not an HTML page, so it is not replaced; choose another name")


def write_page(path: Path, html: str) -> None:
    """All at once, so that an interrupted command leaves the page that was there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(html, encoding="utf-8")
    os.replace(temporary, path)


def shorten(words: str, num: int) -> str:
    """At most `num` printable characters on one line; the middle goes."""
    words = printable(words)
    keep = (num - 3) // 2
    return words if len(words) <= num else f"{words[:keep]}...{words[-keep:]}"


def printable(words: str) -> str:
    """The words with line breaks and other control characters written as in a Python string."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in words)


def _aligned(table: Table) -> list[str]:
    shown = [(shorten(row[0], _NAME_LETTERS), *map(printable, row[1:])) for row in (table.header, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    right = [table.is_number(column) for column in range(len(widths))]
    lines = [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, right, strict=True)
        )
        for row in shown
    ]
    return [f"  {line}".rstrip() for line in lines]


def _section(table: Table) -> str:
    wide = ' class="wide"' if len(table.header) > 4 else ""
    head = "".join(_cell("th", name, table.is_number(column)) for column, name in enumerate(table.header))
    body = "".join(
        f"<tr>{''.join(_cell('td', cell, table.is_number(column)) for column, cell in enumerate(row))}</tr>\n"
        for row in table.rows
    )
    notes = "".join(f'<p class="note">{escape(printable(note))}</p>\n' for note in table.notes)
    return (
        f"<section{wide}><h2>{escape(table.title)}</h2>\n<table>\n<tr>{head}</tr>\n{body}</table>\n{notes}</section>\n"
    )


def _cell(tag: str, words: str, number: bool) -> str:
    share = re.fullmatch(r"[0-9.]+%", words) if number else None
    kind = f' class="number share" style="--share: {words}"' if share else ' class="number"' if number else ""
    return f"<{tag}{kind}>{escape(printable(words))}</{tag}>"


def _items(lines: Iterable[str]) -> str:
    return "".join(f"<li>{escape(printable(line))}</li>\n" for line in lines)
