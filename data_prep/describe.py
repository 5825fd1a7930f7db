"""Say what is in a clip index: `python -m data_prep.describe INDEX [--where split=train] [--html page.html]`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_prep.arguments import OneLineParser, add_where
from data_prep.looking.channels import measured_channels
from data_prep.looking.contact_sheet import read_clips, spread
from data_prep.looking.description import text
from data_prep.looking.findings import describe, usable_rows
from data_prep.looking.page import page
from vjepa.command import run
from vjepa.config.row_filter import parse_where
from vjepa.data.clip_index import ClipIndex
from vjepa.errors import UserError
from vjepa.files import write_text
from vjepa.page.document import check_page


def main(arguments: Sequence[str]) -> int:
    parser = OneLineParser(
        prog="python -m data_prep.describe",
        description="Say what is in a clip index, and what to mend before training.",
    )
    add = parser.add_argument
    add("index", metavar="INDEX", help="clip index, as data_prep.index writes it")
    add_where(parser)
    add("--html", type=Path, metavar="page.html", help="also write one HTML page, with frames of clips inside")
    add("--clips", type=int, default=16, metavar="N", help="clips of which frames are shown (default: 16)")
    measure = "measure each channel of so many clips, evenly among them, and print data.channels for a config"
    add("--channels", type=int, nargs="?", const=64, metavar="N", help=f"{measure} (default: 64)")
    given = parser.parse_args(arguments)
    if given.clips < 0:
        raise UserError(f"--clips {given.clips}: at least 0 is needed")
    if given.html:
        check_page("--html", given.html)
    index, where = ClipIndex.open(given.index), parse_where(given.where, "where")
    if given.channels is not None:
        print(measured_channels(index, where, given.channels))
        return 0
    description = describe(index, where)
    print(text(description))
    if given.html:
        chosen = spread(usable_rows(index, where), given.clips)
        write_text(given.html, page(description, tuple(read_clips(index, chosen.tolist()))))
        print(f"\n{given.html}: written")
    return 0


if __name__ == "__main__":
    run(main)
