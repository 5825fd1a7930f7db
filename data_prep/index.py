"""Make a clip index: `python -m data_prep.index SOURCE --labels labels.csv --out x.parquet`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from data_prep.arguments import OneLineParser, add_engine, add_options, add_tracks, options_of, tracks_of
from data_prep.scanning.build import build_index
from data_prep.scanning.options import DEADLINE_S, ScanOptions
from vjepa.command import run

_OPTION_HELP: Final = {
    "window_s": "cut videos into clips of this many seconds",
    "scenes": "cut videos where the scene changes (PySceneDetect)",
    "scene_threshold": "how much must change for a new scene, of 255",
    "max_s": "cut longer clips into equal parts",
    "min_s": "leave out shorter clips; whatever is left out keeps its row, with the reason in its status",
    "min_motion": "leave out clips with less change from frame to frame, as a share of white",
    "max_black": "leave out clips with a larger share of black frames",
    "pages": "what the pages of a TIFF are: first (the others are left), channels of one picture, or frames",
    "axes": "axes of arrays (.npy, .npz, Zarr), a letter each of t h w c (default: by their number hw, hwc, thwc)",
    "stack_fps": "frames per second of arrays and of pages that are frames, which have no clock",
    "max_frozen": "leave out clips in which nothing changes for a larger share of the time",
}


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m data_prep.index", description="Make a clip index of videos and images, wherever they are."
    )
    add = parser.add_argument
    sources = "folder, glob, CSV, JSONL, Parquet or shards; a path or an fsspec address"
    add("sources", nargs="+", metavar="SOURCE", help=sources)
    out = "the clip index to write; an index there is brought up to date"
    add("--out", required=True, metavar="x.parquet", help=out)
    labels = "first column: file relative to SOURCE; then label, split, group, any other"
    add("--labels", metavar="labels.csv", help=labels)
    add("--layout", default="auto", help="what the sources look like (default: auto)")
    add_options(parser, ScanOptions(), _OPTION_HELP)
    add_tracks(parser)
    add_engine(parser, "files scanned at a time (default: the number of cores)")
    deadline = f"a decoder that takes longer is killed (default: {DEADLINE_S:g})"
    add("--deadline-s", type=float, default=DEADLINE_S, metavar="S", help=deadline)
    sample = "take so many of the files alone, evenly: a first look, which the full scan then continues"
    add("--sample", type=int, metavar="N", help=sample)
    rescan = "scan every file, also those that have not changed since the index was made"
    add("--rescan", action="store_true", help=rescan)
    return parser


def main(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    build_index(
        given.sources,
        given.out,
        given.labels,
        given.workers,
        layout=given.layout,
        options=options_of(given, ScanOptions),
        deadline_s=given.deadline_s,
        engine=given.engine,
        rescan=given.rescan,
        sample=given.sample,
        tracks=tracks_of(given),
    )
    return 0


def _stop(number: int, _: Any) -> NoReturn:
    """End a stopped scan as an interrupted one, which ends its children and says how to go on."""
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    run(main)
