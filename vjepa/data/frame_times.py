"""Which frames a clip has: pure arithmetic on timestamps, so that variable frame rates are honoured.

`times_s` is float64 [n], n >= 1, ascending: when each frame comes on screen. A frame stays on screen until the
next one, the last one until `end_s`. Every id that is returned lies in [0, n). `position` in [0, 1) picks the start of
a clip among all starts at which it fits; 0.5 is the middle. `keyframes_s`, float64 [k]: a clip may start there alone,
because a decoder can.

A video that is too short for a clip starts at its beginning, then `padding` says how it goes on: `hold_last` stays on
the last frame, `loop` starts again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from vjepa.data.media import DecodeError

if TYPE_CHECKING:  # children that copy files use the arithmetic alone
    from vjepa.config import Data
    from vjepa.data.clip_index import IndexRow

Padding = Literal["hold_last", "loop"]

_EPS_S: Final = 1e-6  # i / fps and k / clip_fps meet at the same instant up to rounding


def clip_rate(data: Data) -> float | None:
    """Give the frames per second of a clip; None where the settings fix none."""
    return data.num_frames / data.duration_s if data.duration_s is not None else data.clip_fps


def frame_ids(row: IndexRow, data: Data, position: float, keyframes_s: np.ndarray | None = None) -> np.ndarray:
    """Choose the frames of a clip at `position` in [0, 1) of its video: int64 [T]."""
    (times, end_s), clip_fps = row.clock(), clip_rate(data)
    if keyframes_s is not None:  # of the file
        keyframes_s = times[frame_ids_at(row.times(), keyframes_s)]
    if data.frame_step is not None:
        return clip_by_step(times, data.num_frames, data.frame_step, position, data.padding, keyframes_s)
    if clip_fps is None:
        return clip_whole(times, end_s, data.num_frames, position)
    return clip_by_fps(times, end_s, data.num_frames, clip_fps, position, data.padding, keyframes_s)


def observed_frames(row: IndexRow, data: Data, ahead_s: float) -> np.ndarray:
    """Choose the frames of the clip that ends `ahead_s` before the end of `row`, all on screen before then: int64 [T].

    The clip lasts T / clip_fps up to that moment (with frame_step: T steps; where neither is set: all that is seen).
    Where it reaches back beyond the row, the first frame is repeated. Raises DecodeError where the row has no frame
    that may be seen.
    """
    (times, end_s), clip_fps = row.clock(), clip_rate(data)
    cut_s, start_s = end_s - ahead_s, times[0]
    times = times[: int(np.searchsorted(times, cut_s - _EPS_S))]
    if not len(times):
        raise DecodeError(f"lasts {end_s - start_s:.3g} s, so that nothing is seen {ahead_s:g} s before its end")
    before = np.arange(data.num_frames) - data.num_frames  # -T to -1
    if data.frame_step is not None:
        return np.maximum(len(times) + (before + 1) * data.frame_step - 1, 0)
    if clip_fps is None:
        return clip_whole(times, cut_s, data.num_frames, 0.5)
    return frame_ids_at(times, cut_s + before / clip_fps)


def frame_ids_at(times_s: np.ndarray, wanted_s: np.ndarray) -> np.ndarray:
    """Find the frame on screen at each wanted time: int64 [T] from float64 [T].

    Times before the first frame, or after the last, get that frame.
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
    """Choose `num_frames` frames at `clip_fps` frames per second: int64 [num_frames]."""
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
    """Choose every `frame_step`-th frame, whatever the rate: int64 [num_frames]."""
    room = len(times_s) - ((num_frames - 1) * frame_step + 1)
    start = int(position * (max(0, room) + 1))
    if keyframes_s is not None:
        keyframes = frame_ids_at(times_s, keyframes_s)
        start = int(_one_of(keyframes[keyframes <= room], position, 0))
    ids = start + np.arange(num_frames, dtype=np.int64) * frame_step
    return ids % len(times_s) if padding == "loop" else np.minimum(ids, len(times_s) - 1)


def clip_whole(times_s: np.ndarray, end_s: float, num_frames: int, phase: float) -> np.ndarray:
    """Choose a frame in each of `num_frames` equal segments, at `phase` in [0, 1) of each: int64 [num_frames]."""
    first_s = float(times_s[0])
    return frame_ids_at(times_s, first_s + (np.arange(num_frames) + phase) * ((end_s - first_s) / num_frames))


def _one_of(choices: np.ndarray, position: float, default: float) -> float:
    return float(choices[int(position * len(choices))]) if len(choices) else default
