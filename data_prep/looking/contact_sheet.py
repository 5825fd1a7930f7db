"""A contact sheet: a few frames of a few clips of an index, side by side.

The frames are read in a child process with a deadline for each clip, because the index may be older than the files, and
a decoder may spin for ever in native code.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from data_prep.child import Child, ChildLost
from vjepa.data.clip_index import ClipIndex, IndexRow

DEADLINE_S: Final = 10.0  # for the frames of one clip
MOMENTS: Final = (0.1, 0.3, 0.5, 0.7, 0.9)  # of each clip
FRAME_PX: Final = (200, 150)  # width and height of the box into which a frame is fitted, never cut
BLANK: Final = (232, 232, 232)


@dataclass(frozen=True)
class SheetClip:
    """Hold one clip of a sheet. jpeg: its frames side by side; None where `reason` says why it was not read."""

    row: IndexRow
    jpeg: bytes | None
    reason: str | None = None
    num_frames: int = 0


def spread(rows: np.ndarray, num: int) -> np.ndarray:
    """Choose at most `num` of the rows, evenly spaced: the middle one of each of `num` equal stretches."""
    num = min(num, len(rows))
    chosen: np.ndarray = rows[((np.arange(num) + 0.5) * len(rows) / max(num, 1)).astype(int)]
    return chosen


def read_clips(index: ClipIndex, rows: Sequence[int], deadline_s: float = DEADLINE_S) -> Iterator[SheetClip]:
    """Read the frames of each row in turn, in a child that can be killed.

    A clip that cannot be read, or not within `deadline_s`, has its reason in place of frames.
    """
    with Child("-m", "data_prep.looking.strips", str(index.path)) as reader:
        for i in map(int, rows):
            strip: dict[str, Any] = {}
            try:
                for message in reader.ask({"row": i}, deadline_s):
                    strip |= message
            except ChildLost as lost:
                late = f"took longer than {deadline_s:g} s and was stopped"
                strip["reason"] = {"late": late, "crashed": "the decoder crashed", "failed": str(lost)}[lost.how]
            jpeg = base64.b64decode(strip["jpeg"]) if "jpeg" in strip else None
            yield SheetClip(index.row(i), jpeg, strip.get("reason"), strip.get("frames", 0))
