"""`python -m vjepa.bench [CONFIG.yaml] [section.key=value ...]`: how fast a config trains and loads here.

`--loader`: how near reading clips comes to its decoder alone, and what other starts, or copies of the videos, bring.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from vjepa import command, config
from vjepa.errors import UserError


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.against and not options.loader:
        raise UserError("--against needs --loader: the training step reads no clips")
    settings = command.read_config(options)
    if options.print_config:
        print(config.dump(settings), end="")
        return 0
    from vjepa.training import benchmark  # imports torch, which --help must not wait for

    num_steps = max(1, options.steps)
    if options.loader:
        report = benchmark.bench_loader(settings, num_steps, options.against)
        table = benchmark.loader_table(report, options.against)
    else:
        report = benchmark.bench(settings, num_steps)
        table = benchmark.table(report)
    print(json.dumps(report) if options.json else table)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command.config_parser(
        "bench",
        "Measure the training step and the loader of a config on this machine; choose batch size and workers by it.",
    )
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="steps and batches to measure (default: 20)")
    parser.add_argument(
        "--loader",
        action="store_true",
        help="measure only how clips are read: beside the bare decoder, and by starts at keyframes",
    )
    parser.add_argument(
        "--against",
        metavar="other.parquet",
        help="with --loader: beside another index too, such as that of transcoded copies",
    )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser


if __name__ == "__main__":
    command.run(main)
