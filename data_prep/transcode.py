"""Make training-ready copies of the clips of an index: `python -m data_prep.transcode x.parquet --out FOLDER`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_prep.arguments import add_where, parse_where
from data_prep.copying.job import CopyOptions
from data_prep.copying.transcode import transcode
from vjepa.command import run


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.transcode", description="Make training-ready copies of the clips of an index."
    )
    default = CopyOptions()
    parser.add_argument("index", type=Path, metavar="INDEX", help="clip index of the sources (x.parquet)")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="new or empty folder, or one that this command was at work in",
    )
    parser.add_argument(
        "--short-side-px",
        type=int,
        default=default.short_side_px,
        metavar="N",
        help="at most; no copy is enlarged (default: %(default)s)",
    )
    parser.add_argument(
        "--fps",
        type=float,
        default=default.fps,
        metavar="N",
        help="constant frame rate (default: 0, the times of the source)",
    )
    parser.add_argument(
        "--gop-frames",
        type=int,
        default=default.gop_frames,
        metavar="N",
        help="from one keyframe to the next (default: %(default)s)",
    )
    parser.add_argument(
        "--crf",
        type=float,
        default=default.crf,
        metavar="N",
        help="quality of x264, 0 best to 51 smallest (default: %(default)s)",
    )
    add_where(parser)
    parser.add_argument(
        "--workers", type=int, metavar="N", help="files encoded at a time (default: the number of cores)"
    )
    given = parser.parse_args(arguments)
    options = CopyOptions(given.short_side_px, given.fps, given.gop_frames, given.crf)
    transcode(given.index, given.out, options, parse_where(given.where), given.workers)
    return 0


if __name__ == "__main__":
    run(main)
