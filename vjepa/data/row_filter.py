r"""Rows as they are written on a command line: COLUMN=VALUE1,VALUE2, with \, for a comma that belongs to a value."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vjepa.errors import UserError

Where = dict[str, str | int | list[str | int]]  # the `where` of a source: column -> the values that are wanted


def parse_where(texts: Iterable[str], option: str) -> Where:
    """Read the filters of the option `--<option>`: rows are kept whose column has one of the values.

    Values of a column that is named again are added. Raises UserError for a text that is no filter.
    """
    found: dict[str, list[str | int]] = {}
    for text in texts:
        column, equals, values = text.partition("=")
        if not (column and equals):
            raise UserError(f"--{option} {text}: rows are written COLUMN=VALUE or COLUMN=VALUE1,VALUE2")
        found.setdefault(column, []).extend(value.replace("\\,", ",") for value in re.split(r"(?<!\\),", values))
    return {**found}
