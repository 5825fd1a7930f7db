"""Make a clip index: `python -m data_prep.index SOURCE --labels labels.csv --out x.parquet`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Final, NoReturn

from data_prep.arguments import OneLineParser
from data_prep.scanning.build import build_index
from data_prep.scanning.engines import ENGINES
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
    "max_frozen": "leave out clips with a larger share of frames that equal the one before",
}


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m data_prep.index", description="Make a clip index of videos and images, wherever they are."
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="folder, glob, CSV, JSONL, Parquet or tar shards; a path or an fsspec address",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="x.parquet",
        help="the clip index to write; an index there is brought up to date",
    )
    parser.add_argument(
        "--labels",
        metavar="labels.csv",
        help="first column: file relative to SOURCE; then label, split, group, any other",
    )
    parser.add_argument("--layout", default="auto", help="what the sources look like (default: auto)")
    for option in fields(ScanOptions):
        flag = f"--{option.name.replace('_', '-')}"
        if option.name == "scenes":
            parser.add_argument(flag, action="store_true", help=_OPTION_HELP[option.name])
        else:
            default = "" if option.default is None else f" (default: {option.default:g})"
            parser.add_argument(
                flag, type=float, default=option.default, metavar="X", help=_OPTION_HELP[option.name] + default
            )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="files scanned at a time (default: the number of cores)"
    )
    parser.add_argument(
        "--deadline-s",
        type=float,
        default=DEADLINE_S,
        metavar="S",
        help=f"a decoder that takes longer is killed (default: {DEADLINE_S:g})",
    )
    parser.add_argument(
        "--engine",
        choices=sorted(ENGINES),
        default="processes",
        help="where to scan: on this machine (default), or on a Ray cluster",
    )
    parser.add_argument(
        "--rescan",
        action="store_true",
        help="scan every file, also those that have not changed since the index was made",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    options = ScanOptions(**{option.name: getattr(given, option.name) for option in fields(ScanOptions)})
    build_index(
        given.sources,
        given.out,
        given.labels,
        given.workers,
        layout=given.layout,
        options=options,
        deadline_s=given.deadline_s,
        engine=given.engine,
        rescan=given.rescan,
    )
    return 0


def _stop(number: int, _: Any) -> NoReturn:
    """End a stopped scan as an interrupted one, which ends its children and says how to go on."""
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    run(main)
