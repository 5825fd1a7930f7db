r"""Rows as they are written on a command line: `COLUMN=VALUE1,VALUE2`, values as they are or in quotes.

What holds a comma, or opens with a quote or a space, is written in quotes: "as in JSON, \" and \u00e9" (or with ""
for the quote, as in CSV), 'as in YAML, with '' for the quote'. Nothing else is special: 010, no and 1.0 are texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final

from vjepa.errors import UserError

Where = dict[str, str | list[str]]  # the `where` of a source: column -> the values that are wanted, any of several

_VALUE: Final = re.compile(
    r"""
    \s*
    (?: " (?P<double> (?: [^"\\] | \\. | "" )* ) "
      | ' (?P<single> (?: [^'] | '' )* ) '
      | (?P<plain> (?: (?! [\s"'] ) (?: \\, | [^,] )+ )? )
    )
    \s* (?= , | \Z )
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPED: Final = re.compile(r'(\\.)|""', re.DOTALL)


def parse_where(texts: Iterable[str], option: str) -> Where:
    """Read the filters of the option `--<option>`: rows are kept whose column has one of the values.

    Values of a column that is named again are added. Raises UserError for a text that is no filter.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        column, equals, values = text.partition("=")
        if not (column and equals):
            raise UserError(f"--{option} {text}: rows are written COLUMN=VALUE or COLUMN=VALUE1,VALUE2")
        try:
            found.setdefault(column, []).extend(parse_values(values))
        except ValueError as error:
            raise UserError(f"--{option} {text}: {error}") from None
    return {**found}


def parse_values(text: str) -> list[str]:
    """Read values with commas between them. Raises ValueError for quotes that do not close where a value ends."""
    values, at = [], 0
    while True:
        match = _VALUE.match(text, at)
        if match is None:
            raise ValueError(
                f"{text[at:].lstrip()!r} opens with a quote that does not close where the value ends; a quote that "
                "belongs to a value is written twice, in quotes"
            )
        values.append(_unquoted(match))
        at = match.end()
        if at == len(text):
            return values
        at += 1  # the comma


def quoted(value: str) -> str:
    """Write a value so that `parse_values` reads it: as it is where that can be, else in quotes."""
    return value if re.fullmatch(r"""[^,"'\\\s]([^,\\]*[^,\\\s])?""", value) else json.dumps(value, ensure_ascii=False)


def _unquoted(match: re.Match[str]) -> str:
    if (double := match["double"]) is not None:
        try:
            text: str = json.loads('"' + _ESCAPED.sub(lambda one: one[1] or '\\"', double) + '"', strict=False)
        except json.JSONDecodeError:
            raise ValueError(f'"{double}" is no text as JSON writes it; a backslash is written twice') from None
        return text
    if (single := match["single"]) is not None:
        return single.replace("''", "'")
    return match["plain"].replace("\\,", ",").rstrip()
