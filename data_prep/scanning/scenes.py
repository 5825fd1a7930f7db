"""Cut a video into clips, and say why a clip is left out: windows of fixed length, scenes, filters.

Everything works on the few numbers for each frame that decoding in order left, so a film of hours fits into memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np

from data_prep.scanning.options import ScanOptions
from vjepa.data.media import DecodeError

BLACK_BELOW: Final = 0.04  # mean level of a frame, as a share of white: 10 of 255
FROZEN_BELOW: Final = 0.001  # mean change to a frame, as a share of white: that of FFmpeg's freezedetect, -60 dB
_RATE_TOLERANCE_S: Final = 1e-3  # two roundings to a millisecond, of a frame and of the first or last one (Matroska)
_EPS_S: Final = 1e-6  # a frame may come this much before the window that it opens
_MIN_SCENE_FRAMES: Final = 15  # a change that comes sooner than this after another one is a flash
_NOMINAL_FPS: Final = 25.0  # PySceneDetect wants some rate; frames are counted, so that any will do


@dataclass(frozen=True)
class Frames:
    """Hold what decoding in order found out about the n frames of a video, n >= 1."""

    times_s: np.ndarray  # float64 [n], ascending
    end_s: float  # when the last frame leaves the screen
    fps: float  # mean rate
    keyframes: np.ndarray  # int64 [k], numbers of frames
    levels: np.ndarray  # float64 [n], mean of the frame as a share of white
    changes: np.ndarray  # float64 [n], mean absolute change from the frame before as a share of white; the first is nan
    sizes: list[tuple[int, int, int]]  # (first frame that has it, width, height), upright, square pixels
    scene_starts: list[int]  # numbers of the frames at which the scene changes
    clock_starts: list[int]  # numbers of the frames before which the timestamps jump


class SceneDetector:
    """Run PySceneDetect's ContentDetector on small pictures, one after the other; none is kept."""

    def __init__(self, threshold: float) -> None:
        from scenedetect import ContentDetector, FrameTimecode  # here: an extra of its own, and OpenCV takes a second

        self._detector = ContentDetector(threshold=threshold, min_scene_len=_MIN_SCENE_FRAMES)
        self._timecode = FrameTimecode
        self.starts: list[tuple[int, int]] = []  # (frame at which it was told, frame at which a scene begins)

    def add(self, i: int, picture: np.ndarray) -> None:
        """Take the next frame: uint8 [h, w, 3] RGB, always of the same size."""
        cuts = self._detector.process_frame(self._timecode(i, _NOMINAL_FPS), np.ascontiguousarray(picture[..., ::-1]))
        self.starts += [(i, cut.frame_num) for cut in cuts]


def cut(
    frames: Frames, options: ScanOptions, start_s: float | None = None, end_s: float | None = None
) -> list[dict[str, Any]]:
    """Cut the part from `start_s` to `end_s` into clips, in order: one row each.

    Raises DecodeError where the part has no frame.
    """
    first, end = _part(frames, start_s, end_s)
    cuts: dict[int, str | None] = dict.fromkeys(frames.scene_starts, "scene")
    cuts |= {start: "size" for start, _, _ in frames.sizes}
    cuts |= dict.fromkeys(frames.clock_starts, "clock")
    stretches = list(pairwise([first, *sorted(i for i in cuts if first < i < end), end]))
    if options.max_s:
        stretches = [clip for stretch in stretches for clip in _equal_parts(frames, *stretch, options.max_s)]
    if options.window_s:
        stretches = [clip for stretch in stretches for clip in _windows(frames, *stretch, options.window_s)]
    cuts |= {start: "window" for start, _ in stretches if start not in cuts} | {first: None}
    return [_row(frames, options, *stretch) | {"cut_at": cuts[stretch[0]]} for stretch in stretches]


def rate(times: np.ndarray, fallback_fps: float, clock_starts: Sequence[int] = ()) -> float:
    """Give the mean frames per second of float64 [n] ascending times; `fallback_fps` where they do not tell.

    clock_starts: numbers of the frames before which nothing was recorded for a while.
    """
    stretches = np.split(times, clock_starts)
    span_s = float(sum(stretch[-1] - stretch[0] for stretch in stretches))
    return (len(times) - len(stretches)) / span_s if span_s > 0 else fallback_fps


def _part(frames: Frames, start_s: float | None, end_s: float | None) -> tuple[int, int]:
    """Find the frames that come on screen from `start_s` on and before `end_s`: the first, and the one after the last.

    Raises DecodeError where there is none.
    """
    times = frames.times_s
    first = 0 if start_s is None else int(np.searchsorted(times, start_s - _EPS_S))
    end = len(times) if end_s is None else int(np.searchsorted(times, end_s - _EPS_S))
    if first >= end:
        wanted = f"from {start_s or 0:g} s to {'its end' if end_s is None else f'{end_s:g} s'}"
        raise DecodeError(f"no frame {wanted}: it lasts from {times[0]:g} s to {frames.end_s:g} s")
    return first, end


def _leaves_s(frames: Frames, i: int) -> float:
    """Tell when frame `i` leaves the screen: later than it came, also where the next has the same timestamp.

    Before a jump of the clock it stays as long as any.
    """
    if i == len(frames.times_s) - 1:
        return frames.end_s
    comes_s, next_s = float(frames.times_s[i]), float(frames.times_s[i + 1])
    return next_s if next_s > comes_s and i + 1 not in frames.clock_starts else comes_s + 1 / frames.fps


def _windows(frames: Frames, first: int, end: int, window_s: float) -> list[tuple[int, int]]:
    """Cut a stretch into windows from its first frame on.

    The last window is shorter, and windows without a frame are none.
    """
    numbers = np.floor((frames.times_s[first:end] - frames.times_s[first] + _EPS_S) / window_s)
    return list(pairwise([first, *(first + 1 + np.flatnonzero(np.diff(numbers))).tolist(), end]))


def _equal_parts(frames: Frames, first: int, end: int, max_s: float) -> list[tuple[int, int]]:
    """Cut a stretch into as few windows of one length as keep to `max_s`."""
    length_s = _leaves_s(frames, end - 1) - float(frames.times_s[first])
    return _windows(frames, first, end, length_s / max(1.0, np.ceil((length_s - _EPS_S) / max_s)))


def _row(frames: Frames, options: ScanOptions, first: int, end: int) -> dict[str, Any]:
    times = frames.times_s[first:end]
    start_s, end_s = float(times[0]), _leaves_s(frames, end - 1)
    fps = rate(times, frames.fps if len(times) == len(frames.times_s) else len(times) / (end_s - start_s))
    regular = np.abs(start_s + np.arange(len(times)) / fps - times).max() <= _RATE_TOLERANCE_S
    keys = frames.keyframes[(frames.keyframes >= first) & (frames.keyframes < end)]
    changes = frames.changes[first + 1 : end]
    width, height = next((width, height) for start, width, height in reversed(frames.sizes) if start <= first)
    row = {
        "first_frame": first, "start_s": start_s, "end_s": end_s, "num_frames": end - first, "fps": fps,
        "times_s": None if regular else times.tolist(),
        "keyframes_s": frames.times_s[keys].tolist(), "width": width, "height": height,
        "motion_ratio": float(changes.mean()) if len(changes) else None,
        "black_ratio": float((frames.levels[first:end] < BLACK_BELOW).mean()),
        "frozen_ratio": _frozen(changes, np.diff(times)) if len(changes) else None,
    }  # fmt: skip
    return row | {"status": filter_status(row, options)}


def _frozen(changes: np.ndarray, gaps_s: np.ndarray) -> float:
    """Measure the share of the time in which nothing moves: float64 [n] changes, and [n] seconds up to each of them.

    It is that up to a frame that equals the one before, and what a frame stays on screen beyond its usual time.
    """
    if not gaps_s.any():
        return float((changes < FROZEN_BELOW).mean())
    usual_s = float(np.median(gaps_s))
    held_s = np.where(gaps_s > 2 * usual_s, gaps_s - usual_s, 0.0)
    return float(np.where(changes < FROZEN_BELOW, gaps_s, held_s).sum() / gaps_s.sum())


def filter_status(row: dict[str, Any], options: ScanOptions) -> str:
    """Give "ok", or say why the clip is left out. A single frame has no motion, and is not left out for it."""
    motion, frozen = row["motion_ratio"], row["frozen_ratio"]
    if row["end_s"] - row["start_s"] < options.min_s - _RATE_TOLERANCE_S:
        return f"filtered: shorter than {options.min_s:g} s"
    if motion is not None and motion < options.min_motion:
        return f"filtered: motion below {options.min_motion:g}"
    if row["black_ratio"] > options.max_black:
        return f"filtered: more than {options.max_black:.0%} of the frames are black"
    if frozen is not None and frozen > options.max_frozen:
        return f"filtered: more than {options.max_frozen:.0%} of the time is frozen"
    return "ok"
