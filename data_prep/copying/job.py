"""What a program that makes copies is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from vjepa.data.clip_index import IndexRow


@dataclass(frozen=True)
class CopyOptions:
    """Decide the bytes of a copy.

    short_side_px: of a copy at most, even. fps: constant rate; 0: the times of the source. gop_frames: from one
    keyframe to the next. crf: quality of x264, 0 (lossless) to 51.
    """

    short_side_px: int = 256
    fps: float = 0.0
    gop_frames: int = 16
    crf: float = 23.0


@dataclass(frozen=True)
class CopyJob:
    """Name rows of one and the same file, and where the copy of each goes."""

    rows: list[IndexRow]
    paths: list[str]
    options: CopyOptions

    def to_json(self) -> dict[str, Any]:
        """Give what JSON can hold, for `from_json`."""
        rows = [  # a copy needs no tracks: its index takes them over
            asdict(replace(row, tracks=None)) | {"times_s": None if row.times_s is None else row.times_s.tolist()}
            for row in self.rows
        ]
        return {"rows": rows, "paths": self.paths, "options": asdict(self.options)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CopyJob:
        """Take what `to_json` gave."""
        rows = [
            IndexRow(**row | {"times_s": None if row["times_s"] is None else np.array(row["times_s"])})
            for row in data["rows"]
        ]
        return cls(rows, data["paths"], CopyOptions(**data["options"]))
