"""How every command starts: CONFIG.yaml and section.key=value, one line for bad input, a non-zero exit."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from vjepa import config
from vjepa.errors import UserError

# of the option --encoder of every command that reads weights
ENCODERS: Final = ("encoder", "target_encoder")
UNREAD: Final = 128 + 13  # exit code of a tool whose reader has gone (SIGPIPE)
ENCODER_HELP: Final = (
    "context encoder or target encoder (default: eval.encoder of a run, which is the former; the latter of a "
    "published file)"
)


class _Parser(argparse.ArgumentParser):
    """Overrides may stand before and after options."""

    def parse_args(self, *arguments: Any, **options: Any) -> Any:
        return self.parse_intermixed_args(*arguments, **options)


def config_parser(command: str, purpose: str) -> argparse.ArgumentParser:
    """The arguments that every command with a config shares; `--help` lists every setting."""
    parser = _Parser(
        prog=f"python -m vjepa.{command}",
        description=purpose,
        epilog="\n".join(
            [
                "short names, at the top level of a config and on the command line (name = setting):",
                *config.describe_aliases(),
                "settings (section.key = default  meaning):",
                *config.describe(),
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="CONFIG.yaml | section.key=value",
        help="config file or name of a shipped one (default: demo), and overrides",
    )
    parser.add_argument("--config", metavar="CONFIG.yaml", help="the same as naming the file first")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
    return parser


def read_config(arguments: argparse.Namespace) -> config.Config:
    """The config that the arguments of `config_parser` name."""
    names = [word for word in arguments.settings if "=" not in word]
    if arguments.config:
        names.append(arguments.config)
    if len(names) > 1:
        raise UserError(
            f"one config file, please, got {len(names)}: {', '.join(names)}; overrides are written section.key=value"
        )
    overrides = [word for word in arguments.settings if "=" in word]
    return config.load(names[0] if names else "demo", overrides)


def number(
    kind: type[int] | type[float], *, least: float | None = None, above: float | None = None
) -> Callable[[str], Any]:
    """A `type` for argparse: a finite number, `least` or more, or more than `above`."""

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
    """A `type` for argparse: several of `parse`, with commas between."""
    return lambda text: tuple(parse(word) for word in text.split(","))


def progress_bar(iterable: Iterable[Any] | None = None, *, shown: bool, **options: Any) -> Any:
    """A tqdm bar; where nobody watches a terminal it writes a line only now and then."""
    from tqdm import tqdm

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
    sys.exit(UNREAD if _is_unread() else code)


def _is_unread(line: str = "") -> bool:
    """Whether the reader of what is printed, such as `head`, has gone: then the rest is given up without a word, as by
    any tool in a pipe.
    """
    try:
        print(line, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
