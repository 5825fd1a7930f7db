"""Arguments that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, NoReturn, TypeVar

from vjepa.errors import UserError

Options = TypeVar("Options")


class OneLineParser(argparse.ArgumentParser):
    """Say in one line what is wrong, as for all other bad input."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` lists the arguments")


def add_where(parser: argparse.ArgumentParser) -> None:
    """Add the option --where, for `parse_where` of vjepa.config.row_filter."""
    meaning = "rows that are meant: of several values of one column any, of several columns all"
    metavar = "COLUMN=VALUE[,VALUE]"
    parser.add_argument("--where", nargs="+", action="extend", default=[], metavar=metavar, help=meaning)


def add_options(parser: argparse.ArgumentParser, defaults: Any, meanings: Mapping[str, str]) -> None:
    """Add an option for each field of a dataclass; numbers are whole where the default is."""
    for name, default in asdict(defaults).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true", help=meanings[name])
        elif isinstance(default, str):
            told = f" (default: {default})" if default else ""
            parser.add_argument(flag, default=default, metavar="WORD", help=meanings[name] + told)
        else:
            meaning = meanings[name] + ("" if default is None else f" (default: {default:g})")
            kind = int if isinstance(default, int) else float
            parser.add_argument(flag, type=kind, default=default, metavar="N", help=meaning)


def options_of(given: argparse.Namespace, kind: type[Options]) -> Options:
    """Take what was given for the options that `add_options` added."""
    return kind(**{option.name: getattr(given, option.name) for option in fields(kind)})  # type: ignore[arg-type]
