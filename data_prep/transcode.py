"""Make training-ready copies of the clips of an index: `python -m data_prep.transcode x.parquet --out FOLDER`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from data_prep.arguments import OneLineParser, add_options, add_where, options_of
from data_prep.copying.job import CopyOptions
from data_prep.copying.transcode import transcode
from vjepa.command import run
from vjepa.config.row_filter import parse_where

_OPTION_HELP: Final = {
    "short_side_px": "short side of a copy at most; none is enlarged",
    "fps": "constant frame rate; 0: the times of the source",
    "gop_frames": "frames from one keyframe to the next",
    "crf": "quality of x264, 0 best to 51 smallest",
}


def main(arguments: Sequence[str]) -> int:
    parser = OneLineParser(
        prog="python -m data_prep.transcode", description="Make training-ready copies of the clips of an index."
    )
    add = parser.add_argument
    add("index", type=Path, metavar="INDEX", help="clip index of the sources (x.parquet)")
    out = "new or empty folder, or one that this command was at work in"
    add("--out", type=Path, required=True, metavar="FOLDER", help=out)
    add_options(parser, CopyOptions(), _OPTION_HELP)
    add_where(parser)
    add("--workers", type=int, metavar="N", help="files encoded at a time (default: the number of cores)")
    given = parser.parse_args(arguments)
    where = parse_where(given.where, "where")
    transcode(given.index, given.out, options_of(given, CopyOptions), where, given.workers)
    return 0


if __name__ == "__main__":
    run(main)
