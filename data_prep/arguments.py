"""Arguments that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from vjepa.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """Say in one line what is wrong, as for all other bad input."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` lists the arguments")


def add_where(parser: argparse.ArgumentParser) -> None:
    """Add the option --where, for `parse_where`."""
    parser.add_argument(
        "--where",
        nargs="+",
        action="extend",
        default=[],
        metavar="COLUMN=VALUE",
        help="rows that are meant; of several values of one column any",
    )


def parse_where(words: Sequence[str]) -> dict[str, list[str]]:
    """["split=train", "split=val"] -> {"split": ["train", "val"]}. Raises UserError for a word without "="."""
    where: dict[str, list[str]] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise UserError(f"--where {word}: write COLUMN=VALUE, for example split=train")
        where.setdefault(name, []).append(value)
    return where
