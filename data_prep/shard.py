"""Pack the files of a clip index into tar shards: `python -m data_prep.shard x.parquet --out FOLDER`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_prep.arguments import OneLineParser, add_engine, add_where
from data_prep.copying.shard import ShardOptions, make_shards
from vjepa.command import run
from vjepa.config.row_filter import parse_where


def main(arguments: Sequence[str]) -> int:
    parser = OneLineParser(
        prog="python -m data_prep.shard",
        description="Pack the files of a clip index into tar shards, readable as WebDataset.",
    )
    add, default = parser.add_argument, ShardOptions()
    add("index", type=Path, metavar="INDEX", help="clip index of the files (x.parquet)")
    out = "new or empty local folder, or one that this command was at work in"
    add("--out", type=Path, required=True, metavar="FOLDER", help=out)
    size = parser.add_mutually_exclusive_group()
    max_mb = "MB of files in a shard at most (default: %(default)s)"
    size.add_argument("--max-mb", type=float, default=default.max_mb, metavar="N", help=max_mb)
    size.add_argument("--num-shards", type=int, metavar="N", help="shards of equally many files each")
    seed = "shuffle the files by this seed (default: the order of the index)"
    add("--shuffle-seed", type=int, metavar="N", help=seed)
    add_where(parser)
    address = "where you will move the shards to, such as s3://bucket/folder (default: beside the index)"
    add("--address", metavar="URL", help=address)
    add_engine(parser, "shards written at a time; more than 1 helps where files are remote (default: 1)", workers=1)
    given = parser.parse_args(arguments)
    options, where = ShardOptions(given.max_mb, given.num_shards, given.shuffle_seed), parse_where(given.where, "where")
    make_shards(given.index, given.out, options, where, given.address, given.workers, engine=given.engine)
    return 0


if __name__ == "__main__":
    run(main)
