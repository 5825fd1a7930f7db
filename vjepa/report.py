"""Show runs: a page for each, or one with several overlaid, and the closing table in the terminal.

python -m vjepa.report RUN [RUN ...] [--out page.html]
python -m vjepa.report --live RUN
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vjepa import command
from vjepa.errors import UserError
from vjepa.reporting import live, writing


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vjepa.report",
        description="Write RUN/report.html, a page that needs no network, and print the closing table again.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run folder: finished, running or crashed")
    parser.add_argument("--out", metavar="page.html", type=Path, help="write one page instead, with all runs overlaid")
    parser.add_argument("--live", action="store_true", help="serve the page of one run on 127.0.0.1 while it trains")
    port = command.number(int, least=0)
    parser.add_argument("--port", metavar="N", type=port, default=0, help="of --live (default: any that is free)")
    given = parser.parse_args(arguments)
    if not given.live:
        print(writing.report(given.runs, given.out))
        return 0
    if len(given.runs) != 1 or given.out is not None:
        raise UserError("--live: shows one run, and writes nothing; leave the other runs and --out out")
    live.serve(given.runs[0], given.port)
    return 0


if __name__ == "__main__":
    command.run(main)
