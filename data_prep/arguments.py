"""Arguments that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, NoReturn, TypeVar

from data_prep.engines import ENGINES
from data_prep.listing.tracks import PLAIN, TrackChoice
from vjepa.data.tracks import ROTATION_SIZES
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


def add_engine(parser: argparse.ArgumentParser, meaning: str, workers: int | None = None) -> None:
    """Add the options --workers, which `meaning` explains, and --engine."""
    parser.add_argument("--workers", type=int, default=workers, metavar="N", help=meaning)
    engine = "where to work: on this machine (default), or on a Ray cluster that has the files under the same paths"
    parser.add_argument("--engine", choices=sorted(ENGINES), default="processes", help=engine)


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


def add_tracks(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which numbers are state and action, for `tracks_of`."""
    add = parser.add_argument
    of_frames = "features, arrays or columns that are the {} of each frame, one after the other (default: {})"
    add("--state", type=_names, default=(), metavar="NAME[,NAME]", help=of_frames.format("state", "state"))
    add("--action", type=_names, default=(), metavar="NAME[,NAME]", help=of_frames.format("action", "action"))
    kinds = ", ".join((*ROTATION_SIZES, PLAIN))
    turns = f"a dimension of the state at which a rotation begins: {kinds} (known: roll,pitch,yaw and qx,qy,qz,qw)"
    add("--rotation", nargs="+", action="extend", default=[], metavar="NAME=KIND", help=turns)


def tracks_of(given: argparse.Namespace) -> TrackChoice:
    """Take what was given for the options that `add_tracks` added. Raises UserError for a rotation of no kind."""
    for pair in given.rotation:
        if not all(pair.partition("=")):
            raise UserError(f"--rotation {pair}: write NAME=KIND, such as roll=euler")
    return TrackChoice(given.state, given.action, dict(pair.rpartition("=")[::2] for pair in given.rotation))


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, text.split(","))))
