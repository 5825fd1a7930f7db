"""Seconds to frame ids: pure arithmetic on timestamps, so that variable frame rates are honoured.

`times_s` is float64 [n], n >= 1, ascending: when each frame comes on screen. A frame stays on screen until the
next one, the last one until `end_s`. Every id that is returned lies in [0, n).
"""

from __future__ import annotations

import numpy as np

_EPS_S = 1e-6  # i / fps and k / clip_fps meet at the same instant up to rounding


def frame_ids_at(times_s: np.ndarray, wanted_s: np.ndarray) -> np.ndarray:
    """The frame on screen at each wanted time: int64 [T] from float64 [T]; times before the first or after the last get those."""
    ids = np.searchsorted(times_s, wanted_s + _EPS_S, side="right") - 1
    return np.clip(ids, 0, len(times_s) - 1)


def clip_by_fps(times_s: np.ndarray, end_s: float, num_frames: int, clip_fps: float, position: float) -> np.ndarray:
    """Ids of `num_frames` frames at `clip_fps` frames per second: int64 [num_frames].

    `position` in [0, 1) picks the start among all starts at which every wanted time is inside the video; 0.5 is the
    middle. A video that is too short starts at its beginning and stays on its last frame: padding `hold_last`.
    """
    span_s = (num_frames - 1) / clip_fps
    first_s = float(times_s[0])
    start_s = first_s + position * max(0.0, end_s - first_s - span_s)
    return frame_ids_at(times_s, start_s + np.arange(num_frames) / clip_fps)


def clip_whole(times_s: np.ndarray, end_s: float, num_frames: int, phase: float) -> np.ndarray:
    """One frame in each of `num_frames` equal segments of the video, at `phase` in [0, 1) of each: int64 [num_frames]."""
    first_s = float(times_s[0])
    return frame_ids_at(times_s, first_s + (np.arange(num_frames) + phase) * ((end_s - first_s) / num_frames))
