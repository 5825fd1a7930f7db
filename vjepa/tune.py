"""`python -m vjepa.tune [CONFIG.yaml] [section.key=value ...] --minutes 30`: find settings that learn on your clips."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vjepa import command, config

NOTHING_FOUND: Final = 3  # exit code: no trial came to its end


def main(arguments: Sequence[str]) -> int:
    purpose = (
        "Search learning rate, EMA, weights of regularisers and mask ratio by short runs on your clips, without labels "
        "or with them, and write the config to use. The same command goes on."
    )
    parser = command.config_parser("tune", purpose)
    above_zero, count = command.number(float, above=0), command.number(int, least=1)
    parser.add_argument(
        "--minutes", type=above_zero, default=30.0, metavar="M", help="time to search for (default: 30)"
    )
    parser.add_argument(
        "--steps", type=count, metavar="N", help="of a trial (default: a third of the run, from 100 to 400)"
    )
    parser.add_argument("--trials", type=count, metavar="N", help="end after so many, counted over all calls")
    parser.add_argument("--out", metavar="FOLDER", help="study and results (default: runs/<config name>-tune)")
    parser.add_argument(
        "--storage", metavar="URL", help="of Optuna, for processes on several machines (default: a file in FOLDER)"
    )
    parser.add_argument(
        "--without-labels", action="store_true", help="score without them even where data.val says that there are some"
    )
    options = parser.parse_args(arguments)
    settings = command.read_config(options)
    if options.print_config:
        print(config.dump(settings), end="")
        return 0
    from vjepa.tuning.study import Budget, tune  # PyTorch, which --help must not wait for

    found = tune(
        settings,
        Path(options.out or f"{settings.run.folder.path}-tune"),
        Budget(options.minutes, options.steps, options.trials),
        options.storage,
        options.without_labels,
        shlex.join(["python", "-m", "vjepa.tune", *arguments]),
    )
    return NOTHING_FOUND if found is None else 0


if __name__ == "__main__":
    command.run(main)
