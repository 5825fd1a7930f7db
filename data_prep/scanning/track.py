"""What one pass over a file found, from which clips of it are cut: the whole of it, or any part, as often as wanted.

It is a few numbers for each frame, and pickles as JSON, so that a list of other parts needs no other pass.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np

from data_prep.scanning.options import ScanOptions
from data_prep.scanning.scenes import Frames, cut, filter_status, rate
from vjepa.data.media import DecodeError

FALLBACK_FPS: Final = 25.0  # where neither timestamps nor the header tell a rate
WHITE: Final = 255
_BEYOND_S: Final = 1.0  # a part is cut from what comes so far behind its end, as timestamps may run backwards
# a clock has jumped where it goes back by so many of the longest usual gaps between frames, or ahead by as many and 3 s
_JUMP_FRAMES: Final = 10.0
_JUMP_S: Final = 3.0
_USUAL_SHARE: Final = 0.9  # of the gaps, the longest of which is still usual: recordings of screens have many long ones


@dataclass(frozen=True)
class Track:
    """Hold what decoding in order told of the n frames of a video, n >= 1.

    seconds: float64 [n], timestamps as they came, nan where there was none. num_values: numbers in each of the small
    pictures that were measured, of 0 to WHITE. level_sums: [n], sum of each picture. change_sums: [n], sum of the
    absolute differences from the picture before; the first is 0. keyframes: int64 [k], numbers of frames. sizes: (first
    frame that has it, width, height), upright, square pixels. scenes: (frame at which it was told, frame at which a
    scene begins). header_fps: 0 where the header tells none.
    """

    seconds: np.ndarray
    num_values: int
    level_sums: np.ndarray
    change_sums: np.ndarray
    keyframes: np.ndarray
    sizes: list[tuple[int, int, int]]
    scenes: list[tuple[int, int]]
    header_fps: float

    def frames(self, end_s: float | None = None) -> Frames:
        """Describe the frames up to a bit behind `end_s`: what comes later has no say in a part that ends there."""
        n = len(self.seconds)
        if end_s is not None:
            later = self.seconds > end_s + _BEYOND_S
            n = int(later.argmax()) + 1 if later.any() else n
        times, clock_starts = true_times(self.seconds[:n], self.header_fps)
        fps = rate(times, self.header_fps or FALLBACK_FPS, clock_starts)
        changes = self.change_sums[:n] / self.num_values / WHITE
        changes[0] = math.nan
        return Frames(
            times_s=times,
            end_s=float(times[-1]) + 1 / fps,
            fps=fps,
            keyframes=self.keyframes[self.keyframes < n],
            levels=self.level_sums[:n] / self.num_values / WHITE,
            changes=changes,
            sizes=[size for size in self.sizes if size[0] < n],
            scene_starts=[start for told, start in self.scenes if told < n],
            clock_starts=clock_starts,
        )

    def knows(self, end_s: float) -> bool:
        """Tell whether it goes far enough for a part that ends there, whatever the file holds behind."""
        return bool((self.seconds > end_s + _BEYOND_S).any())

    @property
    def in_order(self) -> bool:
        """Tell whether every timestamp is there and later than the one before, so that random access can be right."""
        return bool((np.diff(self.seconds) > 0).all() and not np.isnan(self.seconds).any())

    def to_json(self) -> dict[str, Any]:
        return {name: _packed(value) if isinstance(value, np.ndarray) else value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Track:
        arrays = {name: _unpacked(value) for name, value in data.items() if isinstance(value, dict)}
        lists = {name: [tuple(item) for item in data[name]] for name in ("sizes", "scenes")}
        return cls(**{**data, **arrays, **lists})


@dataclass(frozen=True)
class FileScan:
    """Hold what the scan of a file found.

    columns: of the clip index, the same for each of its clips. status: why the file cannot be used; None where it can.
    clip: further columns of the clips, of an image of its only one. track: the frames of a video; with a status those
    before the place where decoding it comes to no end.
    """

    columns: Mapping[str, Any]
    status: str | None = None
    clip: Mapping[str, Any] | None = None
    track: Track | None = None

    def clips(
        self, options: ScanOptions, start_s: float | None = None, end_s: float | None = None
    ) -> list[dict[str, Any]]:
        """Cut the file, or the part from `start_s` to `end_s` of a video, into clips: rows of the index, in order.

        There is at least one. `status` is "ok", "filtered: ..." or the reason why there is no clip.
        """
        clip = dict(self.clip or {})
        if self.status is not None and (self.track is None or end_s is None or not self.track.knows(end_s)):
            return [{**self.columns, "status": self.status}]
        if self.track is None:  # a still lasts one second, and is not left out for it
            return [{**self.columns, **clip, "status": filter_status(clip, replace(options, min_s=0.0))}]
        try:
            return [{**self.columns, **row, **clip} for row in cut(self.track.frames(end_s), options, start_s, end_s)]
        except DecodeError as error:
            return [{**self.columns, "status": str(error)}]

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"track": self.track.to_json() if self.track else None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FileScan:
        return cls(**{**data, "track": Track.from_json(data["track"]) if data["track"] else None})


def unusable(reason: str, facts: Mapping[str, Any] | None = None) -> FileScan:
    """Answer for a file that could not be scanned. facts: `file_bytes` and `modified_ns`, as far as they are known."""
    return FileScan({"first_frame": 0, "num_frames": 0, **(facts or {})}, reason)


def true_times(seconds: np.ndarray, header_fps: float) -> tuple[np.ndarray, list[int]]:
    """Tell when each frame comes on screen, from timestamps float64 [n], nan where missing: float64 [n], ascending, and
    the numbers of the frames at which the clock has jumped.

    Timestamps that run a little backwards belong to frames in the right order (packed B-frames), so the instants are
    sorted and the frames are not. Where the clock starts again, another recording follows in the same file: it comes on
    screen behind the one before. Where it leaps ahead, nothing was recorded. Where a timestamp is missing, the rate of
    the header is all there is.
    """
    known = seconds[~np.isnan(seconds)]
    if len(known) < len(seconds):
        first_s = known[0] if len(known) else 0.0
        return first_s + np.arange(len(seconds)) / (header_fps or FALLBACK_FPS), []
    starts, frame_s = _jumps(seconds)
    stretches, shift_s = [np.sort(part) for part in np.split(seconds, starts)], 0.0
    for before, stretch in pairwise(stretches):
        shift_s = max(shift_s, before[-1] + frame_s - stretch[0]) if stretch[0] + shift_s <= before[-1] else shift_s
        stretch += shift_s
    return np.concatenate(stretches), starts


def _jumps(seconds: np.ndarray) -> tuple[list[int], float]:
    """Find the frames before which timestamps jump by much more than a frame lasts, and how long one does."""
    gaps_s = np.diff(seconds)
    ahead_s = gaps_s[gaps_s > 0]
    if not len(ahead_s) or (len(ahead_s) == len(gaps_s) and gaps_s.max() <= _JUMP_S):
        return [], 0.0
    much_s = _JUMP_FRAMES * float(np.quantile(ahead_s, _USUAL_SHARE))
    jumps = (gaps_s > max(_JUMP_S, much_s)) | (gaps_s < -much_s)
    return (np.flatnonzero(jumps) + 1).tolist(), float(np.median(ahead_s))


def _packed(array: np.ndarray) -> dict[str, str]:
    """Pack numbers as text, the first byte of each before the second of each, which compresses better."""
    planes = np.ascontiguousarray(array).view(np.uint8).reshape(-1, array.itemsize).T
    return {"type": array.dtype.str, "bytes": base64.b64encode(zlib.compress(planes.tobytes())).decode()}


def _unpacked(packed: Mapping[str, str]) -> np.ndarray:
    kind = np.dtype(packed["type"])
    planes = np.frombuffer(zlib.decompress(base64.b64decode(packed["bytes"])), np.uint8)
    return np.ascontiguousarray(planes.reshape(kind.itemsize, -1).T).view(kind).ravel()
