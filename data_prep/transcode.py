"""Make training-ready copies of the clips of an index: `python -m data_prep.transcode x.parquet --out FOLDER`.

Of HDF5 of robomimic, whose pictures are arrays, it makes films with tracks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from data_prep.arguments import OneLineParser, add_engine, add_options, add_tracks, add_where, options_of, tracks_of
from data_prep.copying.demonstrations import films_of_demonstrations, is_hdf5
from data_prep.copying.job import CopyOptions
from data_prep.copying.transcode import transcode
from data_prep.listing.tracks import TrackChoice
from vjepa.command import run
from vjepa.config.row_filter import parse_where
from vjepa.errors import UserError

_OPTION_HELP: Final = {
    "short_side_px": "short side of a copy at most; none is enlarged",
    "fps": "constant frame rate, of pictures in HDF5 that at which they were taken; 0: the times of the source",
    "gop_frames": "frames from one keyframe to the next",
    "crf": "quality of x264, 0 best to 51 smallest",
}


def main(arguments: Sequence[str]) -> int:
    parser = OneLineParser(
        prog="python -m data_prep.transcode", description="Make training-ready copies of the clips of an index."
    )
    add = parser.add_argument
    add("index", type=Path, metavar="INDEX", help="clip index of the sources (x.parquet); or HDF5 of robomimic")
    out = "new or empty folder, or one that this command was at work in"
    add("--out", type=Path, required=True, metavar="FOLDER", help=out)
    add_options(parser, CopyOptions(), _OPTION_HELP)
    add_where(parser)
    add_tracks(parser)
    add_engine(parser, "files encoded at a time (default: the number of cores)")
    given = parser.parse_args(arguments)
    where, tracks, options = parse_where(given.where, "where"), tracks_of(given), options_of(given, CopyOptions)
    if is_hdf5(given.index):
        if where:
            raise UserError("--where: chooses rows of an index; HDF5 is made into films as a whole")
        films_of_demonstrations(given.index, given.out, options, tracks, given.workers, engine=given.engine)
        return 0
    if tracks != TrackChoice():
        raise UserError("--state, --action, --rotation: of an index they are chosen where it is made; leave them out")
    transcode(given.index, given.out, options, where, given.workers, engine=given.engine)
    return 0


if __name__ == "__main__":
    run(main)
