"""A description as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Final

from data_prep.looking.contact_sheet import Sheet
from data_prep.looking.description import Description, Table, printable
from vjepa.errors import UserError

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


def page(description: Description, sheet: Sheet | None) -> str:
    """Write one HTML page with everything inside; without `sheet` there are no pictures."""
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
    """Raise UserError, before the work is done, where a page cannot be written or another kind of file is there."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--html {path}: cannot be written; give a file name in a folder that exists")
    if path.exists() and not path.read_bytes()[: len(_DOCTYPE)].lower().startswith(_DOCTYPE.encode()):
        raise UserError(f"--html {path}: exists and is not an HTML page, so it is not replaced; choose another name")


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
