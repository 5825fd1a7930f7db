"""One HTML page with everything inside: escaping, style, script and the policy that every page of the house has."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files as resources
from pathlib import Path
from typing import Any, Final

from vjepa.errors import UserError

DOCTYPE: Final = "<!doctype html>"
_SHARE: Final = re.compile(r"[0-9.]+ ?%")


def document(title: str, body: str, *, is_live: bool = False) -> str:
    """Write a page. body: HTML, of which every word of the user's went through `text`.

    The policy is a second wall behind the escaping: a page that holds names of strangers' files loads nothing, and of
    scripts runs the one that is known by its hash. is_live: it may ask the server that it came from for more.
    """
    style, script = asset("page.css"), asset("page.js")
    known = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{known}'"
    policy += "; connect-src 'self'" if is_live else ""
    return "\n".join(
        [
            DOCTYPE,
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="color-scheme" content="light dark">',
            '<link rel="icon" href="data:,">',
            f"<title>{text(title)}</title>",
            f"<style>\n{style}</style>",
            "</head>",
            f"<body{' data-live' if is_live else ''}>",
            "<main>",
            body,
            "</main>",
            f"<script>{script}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


@cache
def asset(name: str) -> str:
    """Read a file of `assets`."""
    return (resources("vjepa.page") / "assets" / name).read_text(encoding="utf-8")


def text(words: object) -> str:
    """Escape words for HTML, between tags and inside attributes; control characters show as in a Python string."""
    return escape(printable(str(words)))


def printable(words: str) -> str:
    """Write line breaks and other control characters as in a Python string."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in words)


def data(kind: str, value: Any) -> str:
    """Hold plain values for the script, as JSON without NaN that no `</script>` in a name can end."""
    written = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" class="{kind}">{written}</script>'


def image(kind: str, content: bytes) -> str:
    """Give the address of a picture that lies inside the page. kind: png, webp or jpeg."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def section(name: str, title: str, *parts: str, is_wide: bool = False) -> str:
    """Write a part of a page under its heading; nothing where there is nothing in it."""
    inside = "\n".join(part for part in parts if part)
    wide = ' class="wide"' if is_wide else ""
    return f'<section id="{text(name)}"{wide}>\n<h2>{text(title)}</h2>\n{inside}\n</section>' if inside else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Write a table, which scrolls by itself where it is too wide; cells are plain text.

    numbers: columns that are aligned right. A share in one of them has a bar behind it.
    """
    head = "".join(_cell('th scope="col"', name, column in numbers) for column, name in enumerate(header))
    lines = ["".join(_cell("td", cell, i in numbers) for i, cell in enumerate(row)) for row in rows]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    if not body:
        return ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(header[0] or "table")}">'
        f"<table>\n<tr>{head}</tr>\n{body}</table></div>"
    )


def items(lines: Iterable[str], kind: str = "", *, is_ordered: bool = False) -> str:
    """Write a list of plain texts; nothing for none."""
    inside, tag = "".join(f"<li>{text(line)}</li>\n" for line in lines), "ol" if is_ordered else "ul"
    of_kind = f' class="{kind}"' if kind else ""
    return f"<{tag}{of_kind}>\n{inside}</{tag}>" if inside else ""


def note(words: str) -> str:
    """Write a remark in small print."""
    return f'<p class="note">{text(words)}</p>' if words else ""


def folded(title: str, inside: str) -> str:
    """Hide something until it is asked for, which needs no script."""
    return f"<details><summary>{text(title)}</summary>\n{inside}\n</details>" if inside else ""


def pairs(values: Mapping[str, object]) -> str:
    """Write names and values as a table of two columns."""
    return table(("name", "value"), [(name, str(value)) for name, value in values.items()])


def check_page(option: str, path: Path) -> None:
    """Raise UserError, before the work is done, where a page cannot be written or another kind of file is there."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"{option} {path}: cannot be written; give a file name in a folder that exists")
    if path.exists() and not path.read_bytes()[: len(DOCTYPE)].lower().startswith(DOCTYPE.encode()):
        raise UserError(f"{option} {path}: exists and is not an HTML page, so it is not replaced; choose another name")


def _cell(tag: str, words: str, is_number: bool) -> str:
    share = _SHARE.fullmatch(words) if is_number else None
    kind = f' class="number share" style="--share: {words}"' if share else ' class="number"' if is_number else ""
    return f"<{tag}{kind}>{text(words)}</{tag.split()[0]}>"
