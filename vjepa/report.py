"""Print the closing table of a finished run again.

python -m vjepa.report RUN
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vjepa import command
from vjepa.errors import UserError
from vjepa.reporting import finetuned, tables, worlds
from vjepa.run_folder import RunFolder


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vjepa.report", description="Print the closing table of a finished run again."
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    run = RunFolder(Path(parser.parse_args(arguments).run))

    summary = tables.read_summary(run)
    if "kinds" in summary:  # of fine-tuning
        print(finetuned.closing_table(summary))
        return 0
    if "foresight" in summary:  # of a world model
        print(worlds.closing_table(summary))
        return 0
    if "probes" not in summary:
        raise UserError(f"{run.summary}: holds no closing report; the run had no data.val to measure on")
    print(tables.closing_table(summary))
    return 0


if __name__ == "__main__":
    command.run(main)
