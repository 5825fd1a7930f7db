"""A contact sheet: a few frames of a few clips of an index, in one picture.

The frames are read in a child process with a deadline for each clip, because the index may be older than the files, and
a decoder may spin for ever in native code. `python -m data_prep.contact_sheet INDEX` is such a child: row numbers on
standard input, one JSON answer a line on standard output.
"""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import IO, Any, Final

import numpy as np

from data_prep.description import shorten
from vjepa.data.clip_index import ClipIndex, IndexRow
from vjepa.data.decode import DecodeError, av_library, decord_library, read_frames

DEADLINE_S: Final = 10.0  # for the frames of one clip
FRAME_PX: Final = (200, 150)  # width and height of the box into which a frame is fitted, never cut
MOMENTS: Final = (0.25, 0.5, 0.75)  # of each clip
_GAP_PX: Final = 6
_CAPTION_PX: Final = 22
_WIDTH_PX: Final = (
    len(MOMENTS) * (FRAME_PX[0] + _GAP_PX) + _GAP_PX
)  # one clip under the other: captions stay readable on a phone
_INK: Final = (34, 34, 34)
_PAPER: Final = (255, 255, 255)
_BLANK: Final = (232, 232, 232)


@dataclass(frozen=True)
class Clip:
    """One clip of the sheet. jpeg: its frames side by side; None where `reason` says why it could not be read."""

    row: IndexRow
    jpeg: bytes | None
    reason: str | None = None


@dataclass(frozen=True)
class Sheet:
    """jpeg: the picture of all clips, one under the other, numbered from 1."""

    jpeg: bytes
    clips: tuple[Clip, ...]


def contact_sheet(index: ClipIndex, rows: Sequence[int], deadline_s: float = DEADLINE_S) -> Sheet:
    """The sheet of rows, at least one. A clip that cannot be read, or not within `deadline_s`, has its reason in place
    of frames.
    """
    clips = tuple(read_clips(index, rows, deadline_s))
    return Sheet(_draw(clips), clips)


def spread(rows: np.ndarray, num: int) -> np.ndarray:
    """At most `num` of the rows, evenly spaced: the middle one of each of `num` equal stretches."""
    num = min(num, len(rows))
    chosen: np.ndarray = rows[((np.arange(num) + 0.5) * len(rows) / max(num, 1)).astype(int)]
    return chosen


def read_clips(index: ClipIndex, rows: Sequence[int], deadline_s: float = DEADLINE_S) -> Iterator[Clip]:
    """Each row in turn; a child that is late or dies is replaced."""
    child = None
    try:
        for i in rows:
            child = child or _Child(index.path)
            answer = child.ask(int(i), deadline_s)
            if answer is None:
                reason = f"took longer than {deadline_s:g} s and was stopped" if child.late else "the decoder crashed"
                child.end()
                child, answer = None, {"reason": reason}
            jpeg = base64.b64decode(answer["jpeg"]) if "jpeg" in answer else None
            yield Clip(index.row(int(i)), jpeg, answer.get("reason"))
    finally:
        if child:
            child.end()


class _Child:
    """A program of its own, not a fork. The clock of the first clip starts once its libraries are loaded."""

    def __init__(self, index: Path) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(place or "." for place in sys.path)}
        command = [sys.executable, "-m", "data_prep.contact_sheet", str(index)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.late = False
        self._answers().readline()

    def ask(self, row: int, deadline_s: float) -> dict[str, str] | None:
        """The answer for a row; None where the child died, by itself or because it was late."""
        killer = Timer(deadline_s, self._kill_late)
        killer.start()
        try:
            print(row, file=self._process.stdin, flush=True)
            line = self._answers().readline()
        except BrokenPipeError:
            line = ""
        finally:
            killer.cancel()
        return json.loads(line) if line else None

    def _answers(self) -> IO[str]:
        if self._process.stdout is None:
            raise RuntimeError("a child without pipes")
        return self._process.stdout

    def _kill_late(self) -> None:
        self.late = True
        self._process.kill()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def _read(row: IndexRow) -> dict[str, str]:
    """What the child answers: the frames of one clip, or the reason."""
    try:
        frames = read_frames(row, np.unique([int(moment * row.num_frames) for moment in MOMENTS]))
    except DecodeError as error:
        return {"reason": str(error)}
    return {"jpeg": base64.b64encode(_strip(frames)).decode()}


def _strip(frames: np.ndarray) -> bytes:
    """uint8 [n, H, W, 3] -> JPEG of the frames side by side, each in a box of FRAME_PX; fewer frames leave their boxes
    blank.
    """
    from PIL import Image, ImageOps

    strip = Image.new("RGB", (_WIDTH_PX - 2 * _GAP_PX, FRAME_PX[1]), _PAPER)
    for i, frame in enumerate(frames):
        strip.paste(ImageOps.pad(Image.fromarray(frame), FRAME_PX, color=_BLANK), (i * (FRAME_PX[0] + _GAP_PX), 0))
    return _jpeg(strip)


def _draw(clips: Sequence[Clip]) -> bytes:
    from PIL import Image, ImageDraw, ImageFont

    height = FRAME_PX[1] + _CAPTION_PX + _GAP_PX
    sheet = Image.new("RGB", (_WIDTH_PX, height * len(clips) + _GAP_PX), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, clip in enumerate(clips, 1):
        top = _GAP_PX + (number - 1) * height
        draw.text((_GAP_PX, top), _caption(number, clip.row), _INK, font)
        box = (_GAP_PX, top + _CAPTION_PX)
        if clip.jpeg:
            sheet.paste(Image.open(io.BytesIO(clip.jpeg)), box)
        else:
            draw.rectangle((*box, _WIDTH_PX - _GAP_PX, box[1] + FRAME_PX[1]), _BLANK)
            draw.text((box[0] + 12, box[1] + FRAME_PX[1] // 2 - 10), shorten(clip.reason or "", 76), _INK, font)
    return _jpeg(sheet)


def _caption(number: int, row: IndexRow) -> str:
    facts = f"{row.width}x{row.height}" + (
        "" if row.decoder == "image" else f"  {row.fps:.4g} fps  {row.end_s - row.start_s:.3g} s"
    )
    return f"{number}  {shorten(row.uri.rpartition('/')[2], 44)}  {facts}"


def _jpeg(picture: Any) -> bytes:
    with io.BytesIO() as buffer:
        picture.save(buffer, "JPEG", quality=85)
        return buffer.getvalue()


def main(index: ClipIndex) -> None:
    """Answer until standard input ends. What libraries print must not mix with the answers."""
    av_library(), decord_library()
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        print(file=answers, flush=True)  # ready
        for line in sys.stdin:
            print(json.dumps(_read(index.row(int(line)))), file=answers, flush=True)


if __name__ == "__main__":
    main(ClipIndex.open(sys.argv[1]))
