"""How every command starts: CONFIG.yaml and section.key=value, one line for bad input, a non-zero exit."""

from __future__ import annotations

import argparse
import errno
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, fields
from types import UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tqdm import tqdm

from vjepa import config
from vjepa.config.row_filter import parse_values
from vjepa.errors import UserError

_OF_DISKS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no fault of the program
# of the option --encoder of every command that reads weights
ENCODERS: Final = ("encoder", "target_encoder")
UNREAD: Final = 128 + 13  # exit code of a tool whose reader has gone (SIGPIPE)
ENCODER_HELP: Final = (
    "context encoder or target encoder (default: eval.encoder of a run, which is the former; the latter of a "
    "published file)"
)


Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Option:
    """Describe an option beside the type and the default of the field that it annotates.

    help: a default that is not None is told without being named. least, above: bounds of numbers.
    """

    help: str
    metavar: str | None = None
    least: float | None = None
    above: float | None = None


def parse(settings: type[Settings], command: str, purpose: str, arguments: Sequence[str]) -> Settings:
    """Read the command line into a dataclass whose fields are `Annotated[type, Option(...)] = default`.

    Each is spelled --name, with _ and with -; those without a default are required, and come first in the help.
    """
    parser = argparse.ArgumentParser(prog=f"python -m vjepa.{command}", description=purpose)
    hints = get_type_hints(settings, include_extras=True)
    for field in sorted(fields(settings), key=lambda field: field.default is not MISSING):  # type: ignore[arg-type]
        kind, option = get_args(hints[field.name])
        how = _how(kind, option)
        how |= {"required": True} if field.default is MISSING else {"default": field.default}
        told = "" if field.default in (MISSING, None) or kind is bool else " (default: %(default)s)"
        spellings = dict.fromkeys((f"--{field.name}", f"--{field.name.replace('_', '-')}"))
        parser.add_argument(*spellings, help=option.help + told, **how)
    return settings(**vars(parser.parse_args(arguments)))


def _how(kind: Any, option: Option) -> dict[str, Any]:
    """Say to argparse how an option becomes a `kind`, which may stand beside None."""
    if get_origin(kind) in (Union, UnionType):
        (kind,) = {*get_args(kind)} - {type(None)}
    origin, inner = get_origin(kind), get_args(kind)
    if kind is bool:
        return {"action": "store_true"}
    if origin is Literal:
        return {"choices": inner, "type": type(inner[0])}
    if origin is list:
        return {"action": "append", "metavar": option.metavar}
    if origin is tuple and inner[0] is str:
        return {"type": texts, "metavar": option.metavar}
    item = inner[0] if origin is tuple else kind
    read = number(item, least=option.least, above=option.above) if item in (int, float) else item
    return {"type": numbers(read) if origin is tuple else read, "metavar": option.metavar}


class _ConfigParser(argparse.ArgumentParser):
    """Let overrides stand before and after options."""

    def parse_args(self, *arguments: Any, **options: Any) -> Any:
        return self.parse_intermixed_args(*arguments, **options)


def config_parser(
    command: str, purpose: str, section: type[config.Config | config.FinetuneConfig] = config.Config
) -> argparse.ArgumentParser:
    """Make a parser of the arguments that every command with a config shares; `--help` lists every setting of it."""
    parser = _ConfigParser(
        prog=f"python -m vjepa.{command}",
        description=purpose,
        epilog="\n".join(
            [
                "short names, at the top level of a config and on the command line (name = setting):",
                *config.describe_aliases(section),
                "settings (section.key = default  meaning):",
                *config.describe(section),
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="CONFIG.yaml | section.key=value",
        help="config file or name of a shipped one"
        f"{' (default: demo)' if section is config.Config else ', or none'}, and overrides",
    )
    parser.add_argument("--config", metavar="CONFIG.yaml", help="the same as naming the file first")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
    return parser


def read_config(arguments: argparse.Namespace) -> config.Config:
    """Load the config that the arguments of `config_parser` name."""
    name, overrides = split_settings(arguments)
    return config.load(name or "demo", overrides)


def read_training(arguments: argparse.Namespace) -> config.Config | config.WorldConfig:
    """Load the config that the arguments of `config_parser` name, of pre-training or of a world model."""
    name, overrides = split_settings(arguments)
    return config.load_training(name or "demo", overrides)


def split_settings(arguments: argparse.Namespace) -> tuple[str | None, list[str]]:
    """Tell the one config file that the arguments of `config_parser` name, where they do, from the overrides."""
    names = [word for word in arguments.settings if "=" not in word]
    if arguments.config:
        names.append(arguments.config)
    if len(names) > 1:
        raise UserError(
            f"one config file, please, got {len(names)}: {', '.join(names)}; overrides are written section.key=value"
        )
    return (names[0] if names else None), [word for word in arguments.settings if "=" in word]


def number(
    kind: type[int] | type[float], *, least: float | None = None, above: float | None = None
) -> Callable[[str], Any]:
    """Make a `type` for argparse: a finite number, `least` or more, or more than `above`."""

    def parse(text: str) -> int | float:
        limit = f"of at least {least:g}" if least is not None else f"above {above:g}" if above is not None else ""
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (
            -math.inf < value < math.inf and (least is None or value >= least) and (above is None or value > above)
        ):
            raise argparse.ArgumentTypeError(f"{text}: not a {'whole ' if kind is int else ''}number {limit}".rstrip())
        return value

    return parse


def numbers(parse: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Make a `type` for argparse: several of `parse`, with commas between."""
    return lambda text: tuple(parse(word) for word in text.split(","))


def texts(text: str) -> tuple[str, ...]:
    """Read texts with commas between them for argparse, by the grammar of `--where`: what has a comma, in quotes."""
    try:
        return tuple(parse_values(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def progress_bar(iterable: Iterable[Any] | None = None, *, shown: bool, **options: Any) -> Any:
    """Make a tqdm bar; where nobody watches a terminal it writes a line only now and then."""
    return tqdm(iterable, mininterval=0.5 if sys.stderr.isatty() else 15.0, disable=not shown, **options)


def run(main: Callable[[Sequence[str]], int]) -> None:
    """Call `main` with the command line and exit with what it returns; bad input is one line and exit code 2."""
    code: Any
    try:
        code = main(sys.argv[1:])
    except SystemExit as exit:  # of argparse, after --help or a wrong option
        code = exit.code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        if not _is_unread("\n"):  # what failed to be written is forgotten, so that a flush alone would not tell
            raise
        code = UNREAD
    except Exception as error:
        reason = _of_disk(error)
        if reason is None:
            raise
        print(f"error: {reason}; make room there, or choose another place", file=sys.stderr)
        code = 2
    sys.exit(UNREAD if _is_unread() else code)


def _of_disk(error: Exception) -> str | None:
    """Say in one line what a disk refused to keep; None for an error of another kind. Libraries wrap those of disks."""
    if isinstance(error, OSError) and error.errno in _OF_DISKS:
        place = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return f"{place}cannot be written: {error.strerror}"
    told, known = " ".join(str(error).split()), (os.strerror(number) for number in _OF_DISKS)
    return next((f"cannot be written: {reason} ({told})" for reason in known if reason in told), None)


def _is_unread(line: str = "") -> bool:
    """Tell whether the reader of what is printed, such as `head`, has gone.

    Then the rest is given up without a word, as by any tool in a pipe.
    """
    try:
        print(line, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
