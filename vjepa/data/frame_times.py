"""Seconds to frame ids: pure arithmetic on timestamps, so that variable frame rates are honoured.

`times_s` is float64 [n], n >= 1, ascending: when each frame comes on screen. A frame stays on screen until the
next one, the last one until `end_s`. Every id that is returned lies in [0, n). `position` in [0, 1) picks the start of
a clip among all starts at which it fits; 0.5 is the middle. `keyframes_s`, float64 [k]: a clip may start there alone,
because a decoder can.

A video that is too short for a clip starts at its beginning, then `padding` says how it goes on: `hold_last` stays on
the last frame, `loop` starts again.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Padding = Literal["hold_last", "loop"]

_EPS_S = 1e-6  # i / fps and k / clip_fps meet at the same instant up to rounding


def frame_ids_at(times_s: np.ndarray, wanted_s: np.ndarray) -> np.ndarray:
    """The frame on screen at each wanted time: int64 [T] from float64 [T]; times before the first or after the last get
    those.
    """
    ids = np.searchsorted(times_s, wanted_s + _EPS_S, side="right") - 1
    return np.clip(ids, 0, len(times_s) - 1)


def clip_by_fps(
    times_s: np.ndarray,
    end_s: float,
    num_frames: int,
    clip_fps: float,
    position: float,
    padding: Padding = "hold_last",
    keyframes_s: np.ndarray | None = None,
) -> np.ndarray:
    """Ids of `num_frames` frames at `clip_fps` frames per second: int64 [num_frames]."""
    first_s = float(times_s[0])
    room_s = end_s - first_s - (num_frames - 1) / clip_fps
    start_s = first_s + position * max(0.0, room_s)
    if keyframes_s is not None:
        start_s = _one_of(keyframes_s[keyframes_s <= first_s + room_s + _EPS_S], position, first_s)
    after_s = start_s - first_s + np.arange(num_frames) / clip_fps
    if padding == "loop":
        after_s = (after_s + _EPS_S) % (end_s - first_s)
    return frame_ids_at(times_s, first_s + after_s)


def clip_by_step(
    times_s: np.ndarray,
    num_frames: int,
    frame_step: int,
    position: float,
    padding: Padding = "hold_last",
    keyframes_s: np.ndarray | None = None,
) -> np.ndarray:
    """Every `frame_step`-th frame, whatever the rate: int64 [num_frames]."""
    room = len(times_s) - ((num_frames - 1) * frame_step + 1)
    start = int(position * (max(0, room) + 1))
    if keyframes_s is not None:
        keyframes = frame_ids_at(times_s, keyframes_s)
        start = int(_one_of(keyframes[keyframes <= room], position, 0))
    ids = start + np.arange(num_frames, dtype=np.int64) * frame_step
    return ids % len(times_s) if padding == "loop" else np.minimum(ids, len(times_s) - 1)


def clip_whole(times_s: np.ndarray, end_s: float, num_frames: int, phase: float) -> np.ndarray:
    """One frame in each of `num_frames` equal segments of the video, at `phase` in [0, 1) of each: int64
    [num_frames].
    """
    first_s = float(times_s[0])
    return frame_ids_at(times_s, first_s + (np.arange(num_frames) + phase) * ((end_s - first_s) / num_frames))


def _one_of(choices: np.ndarray, position: float, default: float) -> float:
    return float(choices[int(position * len(choices))]) if len(choices) else default
