"""A description of an index: tables and warnings, and their text for a terminal."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from vjepa.page.document import printable

_NAME_LETTERS: Final = 60  # of the first column in the text; the page wraps
_NUMBER: Final = re.compile(r"|[0-9][0-9.,e+-]*( ?(%|s|min|h|[KMGT]?i?B))?")


@dataclass(frozen=True)
class Table:
    """Hold one part of a description. A table without rows is not shown."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def is_number(self, column: int) -> bool:
        """Tell whether all cells of a column are numbers, maybe with a unit, or empty: they are aligned right."""
        return column > 0 and all(_NUMBER.fullmatch(row[column]) for row in self.rows)


@dataclass(frozen=True)
class Description:
    """Hold what there is to say of an index.

    title: the index and the rows that are described. warnings: what to mend before training, one sentence each.
    """

    title: str
    warnings: tuple[str, ...]
    tables: tuple[Table, ...]


def text(description: Description) -> str:
    """Lay a description out for a terminal; names of files cannot move its cursor."""
    lines = [description.title, *(f"WARNING: {warning}" for warning in description.warnings)]
    for table in description.tables:
        lines += ["", table.title, *_aligned(table), *(f"  {note}" for note in table.notes)]
    return "\n".join(printable(line) for line in lines)


def shorten(words: str, num: int) -> str:
    """Keep at most `num` printable characters on one line; the middle goes."""
    words = printable(words)
    keep = (num - 3) // 2
    return words if len(words) <= num else f"{words[:keep]}...{words[-keep:]}"


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
