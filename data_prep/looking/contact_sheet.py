"""A contact sheet: a few frames of a few clips of an index, in one picture.

The frames are read in a child process with a deadline for each clip, because the index may be older than the files, and
a decoder may spin for ever in native code.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_prep.child import Child, ChildLost
from data_prep.looking.description import shorten
from vjepa.data.clip_index import ClipIndex, IndexRow

DEADLINE_S: Final = 10.0  # for the frames of one clip
MOMENTS: Final = (0.25, 0.5, 0.75)  # of each clip
FRAME_PX: Final = (200, 150)  # width and height of the box into which a frame is fitted, never cut
GAP_PX: Final = 6
STRIP_PX: Final = len(MOMENTS) * (FRAME_PX[0] + GAP_PX) - GAP_PX  # the frames of a clip, side by side
PAPER: Final = (255, 255, 255)
BLANK: Final = (232, 232, 232)
_CAPTION_PX: Final = 22
_WIDTH_PX: Final = STRIP_PX + 2 * GAP_PX  # one clip under the other: captions stay readable on a phone
_INK: Final = (34, 34, 34)


@dataclass(frozen=True)
class SheetClip:
    """Hold one clip of a sheet. jpeg: its frames side by side; None where `reason` says why it was not read."""

    row: IndexRow
    jpeg: bytes | None
    reason: str | None = None


@dataclass(frozen=True)
class Sheet:
    """Hold the picture of all clips as JPEG, one under the other, numbered from 1."""

    jpeg: bytes
    clips: tuple[SheetClip, ...]


def contact_sheet(index: ClipIndex, rows: Sequence[int], deadline_s: float = DEADLINE_S) -> Sheet:
    """Draw the sheet of rows, at least one.

    A clip that cannot be read, or not within `deadline_s`, has its reason in place of frames.
    """
    clips = tuple(read_clips(index, rows, deadline_s))
    return Sheet(_draw(clips), clips)


def spread(rows: np.ndarray, num: int) -> np.ndarray:
    """Choose at most `num` of the rows, evenly spaced: the middle one of each of `num` equal stretches."""
    num = min(num, len(rows))
    chosen: np.ndarray = rows[((np.arange(num) + 0.5) * len(rows) / max(num, 1)).astype(int)]
    return chosen


def read_clips(index: ClipIndex, rows: Sequence[int], deadline_s: float = DEADLINE_S) -> Iterator[SheetClip]:
    """Read the frames of each row in turn, in a child that can be killed."""
    with Child("-m", "data_prep.looking.strips", str(index.path)) as reader:
        for i in map(int, rows):
            strip: dict[str, str] = {}
            try:
                for message in reader.ask({"row": i}, deadline_s):
                    strip |= message
            except ChildLost as lost:
                late = f"took longer than {deadline_s:g} s and was stopped"
                strip["reason"] = {"late": late, "crashed": "the decoder crashed", "failed": str(lost)}[lost.how]
            jpeg = base64.b64decode(strip["jpeg"]) if "jpeg" in strip else None
            yield SheetClip(index.row(i), jpeg, strip.get("reason"))


def _draw(clips: Sequence[SheetClip]) -> bytes:
    height = FRAME_PX[1] + _CAPTION_PX + GAP_PX
    sheet = Image.new("RGB", (_WIDTH_PX, height * len(clips) + GAP_PX), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, clip in enumerate(clips, 1):
        top = GAP_PX + (number - 1) * height
        draw.text((GAP_PX, top), _caption(number, clip.row), _INK, font)
        box = (GAP_PX, top + _CAPTION_PX)
        if clip.jpeg:
            sheet.paste(Image.open(io.BytesIO(clip.jpeg)), box)
        else:
            draw.rectangle((*box, _WIDTH_PX - GAP_PX, box[1] + FRAME_PX[1]), BLANK)
            draw.text((box[0] + 12, box[1] + FRAME_PX[1] // 2 - 10), shorten(clip.reason or "", 76), _INK, font)
    return as_jpeg(sheet)


def _caption(number: int, row: IndexRow) -> str:
    facts = f"{row.width}x{row.height}" + (
        "" if row.decoder == "image" else f"  {row.fps:.4g} fps  {row.end_s - row.start_s:.3g} s"
    )
    return f"{number}  {shorten(row.uri.rpartition('/')[2], 44)}  {facts}"


def as_jpeg(picture: Any) -> bytes:
    """Encode a picture of Pillow."""
    with io.BytesIO() as buffer:
        picture.save(buffer, "JPEG", quality=85)
        return buffer.getvalue()
