"""Pack the files of a clip index into tar shards: `python -m data_prep.shard x.parquet --out FOLDER`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_prep.arguments import add_where, parse_where
from data_prep.copying.shard import ShardOptions, make_shards
from vjepa.command import run


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.shard",
        description="Pack the files of a clip index into tar shards, readable as WebDataset.",
    )
    default = ShardOptions()
    parser.add_argument("index", type=Path, metavar="INDEX", help="clip index of the files (x.parquet)")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="new or empty local folder, or one that this command was at work in",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--max-mb",
        type=float,
        default=default.max_mb,
        metavar="N",
        help="MB of files in a shard at most (default: %(default)s)",
    )
    size.add_argument("--num-shards", type=int, metavar="N", help="shards of equally many files each")
    parser.add_argument(
        "--shuffle-seed", type=int, metavar="N", help="shuffle the files by this seed (default: the order of the index)"
    )
    add_where(parser)
    parser.add_argument(
        "--address",
        metavar="URL",
        help="where you will move the shards to, such as s3://bucket/folder (default: beside the index)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="shards written at a time; more than 1 helps where files are remote",
    )
    given = parser.parse_args(arguments)
    options = ShardOptions(given.max_mb, given.num_shards, given.shuffle_seed)
    make_shards(given.index, given.out, options, parse_where(given.where), given.address, given.workers)
    return 0


if __name__ == "__main__":
    run(main)
