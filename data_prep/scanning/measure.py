"""Decode a video once, in order, and measure every frame on the way: only a few numbers for each stay in memory."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from time import monotonic
from typing import Any, Final

import av
import numpy as np

from data_prep.scanning.random_access import Samples, mean_differences
from data_prep.scanning.scenes import Frames, SceneDetector, rate
from vjepa.data.decode import Media, open_video, rotation_of, upright
from vjepa.data.media import DecodeError

_SMALL_PX: Final = 128  # long side of the pictures from which motion, black and frozen frames and scenes are measured
_FALLBACK_FPS: Final = 25.0  # where neither timestamps nor the header tell a rate
_PROGRESS_S: Final = 1.0
# a clock has jumped where it goes back by so many of the longest usual gaps between frames, or ahead by as many and 3 s
_JUMP_FRAMES: Final = 10.0
_JUMP_S: Final = 3.0
_USUAL_SHARE: Final = 0.9  # of the gaps, the longest of which is still usual: recordings of screens have many long ones
_BEYOND_S: Final = 1.0  # decoding goes on so far behind the end that is wanted, as timestamps may run backwards


@dataclass(frozen=True)
class Measurement:
    """Hold what one pass over a video found.

    columns: codec, bit_depth, rotation and sample_aspect, as in the clip index.
    in_order: whether every timestamp is there and later than the one before, so that random access can be right.
    num_total: frames of the file; None where decoding stopped behind the part that was wanted.
    """

    frames: Frames
    columns: dict[str, Any]
    samples: Samples
    in_order: bool
    num_total: int | None


def measure(
    media: Media, end_s: float | None, scene_threshold: float | None, progress: Callable[[int], None]
) -> Measurement:
    """Decode `media` up to its end, its first error, or a bit behind `end_s`. Raises DecodeError where no frame comes.

    scene_threshold: of `SceneDetector`; None looks for no scenes.
    progress: is told how many frames there are, every second or so.
    """
    opened, stopped, meter, header_fps, told_s = False, False, None, 0.0, monotonic()
    try:
        with open_video(media) as (container, stream):
            opened, header_fps = True, float(stream.average_rate or stream.guessed_rate or 0)
            for i, frame in enumerate(container.decode(stream)):
                meter = meter or _Meter(stream, frame, scene_threshold)
                meter.add(i, frame)
                if monotonic() > told_s + _PROGRESS_S:
                    progress(i + 1)
                    told_s = monotonic()
                stopped = end_s is not None and meter.seconds[-1] > end_s + _BEYOND_S
                if stopped:
                    break
    except DecodeError as error:
        if meter is None or not meter.seconds:
            raise DecodeError("no decodable frame" if opened else str(error)) from None
    if meter is None:
        raise DecodeError("no decodable frame")
    return meter.result(header_fps, stopped)


class _Meter:
    """Measure the frames of a video, one after the other."""

    def __init__(self, stream: Any, frame: Any, scene_threshold: float | None) -> None:
        """Take the first frame, which tells what holds for all."""
        aspect = float(stream.sample_aspect_ratio or 1)
        self.rotation, self.aspect = rotation_of(frame), aspect if 0.1 < aspect < 10 else 1.0
        self.columns = {
            "codec": stream.codec_context.codec.canonical_name,
            "bit_depth": max(part.bits for part in frame.format.components),
            "rotation": self.rotation, "sample_aspect": self.aspect,
        }  # fmt: skip
        self.samples = Samples(self._upright)
        self.seconds, self.levels, self.changes = array("d"), array("d"), array("d")  # nan: not known
        self._keys = array("q")
        self._sizes: list[tuple[int, int, int]] = []
        self._stored_px = (0, 0)
        scale = min(1.0, _SMALL_PX / max(frame.width, frame.height))
        self._small_px = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
        self._small: np.ndarray | None = None
        self._scenes = SceneDetector(scene_threshold) if scene_threshold is not None else None
        reformatters = av.video.reformatter
        self._to_upright, self._to_small = reformatters.VideoReformatter(), reformatters.VideoReformatter()

    def add(self, i: int, frame: Any) -> None:
        """Take frame number `i`, or nothing of it where a library cannot convert it, and raises."""
        small, before = self._shrink(frame), self._small
        if (frame.width, frame.height) != self._stored_px:
            height, width, _ = self._upright(frame).shape
            self._sizes.append((i, width, height))
            self._stored_px = frame.width, frame.height
        self.samples.add(i, frame)
        if self._scenes:
            self._scenes.add(i, small)
        if frame.key_frame:
            self._keys.append(i)
        self.levels.append(small.sum(dtype=np.uint32) / small.size / 255)
        self.changes.append(math.nan if before is None else mean_differences(before[None], small)[0] / 255)
        self._small = small
        self.seconds.append(frame.time if frame.time is not None and math.isfinite(frame.time) else math.nan)

    def result(self, header_fps: float, stopped: bool) -> Measurement:
        self.samples.end()
        seconds = np.array(self.seconds)
        times, clock_starts = true_times(seconds, header_fps)
        fps = rate(times, header_fps or _FALLBACK_FPS, clock_starts)
        frames = Frames(
            times_s=times,
            end_s=float(times[-1]) + 1 / fps,
            fps=fps,
            keyframes=np.array(self._keys, np.int64),
            levels=np.array(self.levels),
            changes=np.array(self.changes),
            sizes=self._sizes,
            scene_starts=self._scenes.starts if self._scenes else [],
            clock_starts=clock_starts,
        )
        in_order = bool((np.diff(seconds) > 0).all() and not np.isnan(seconds).any())
        return Measurement(frames, self.columns, self.samples, in_order, None if stopped else len(times))

    def _upright(self, frame: Any) -> np.ndarray:
        return upright(self._to_upright, frame, self.rotation, self.aspect)

    def _shrink(self, frame: Any) -> np.ndarray:
        """Give uint8 [h, w, 3], as it is stored; of one size, also where the size of the frames changes."""
        width, height = self._small_px
        picture: np.ndarray = self._to_small.reformat(
            frame, width=width, height=height, format="rgb24", interpolation="AREA", threads=1
        ).to_ndarray()
        return picture


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
        return first_s + np.arange(len(seconds)) / (header_fps or _FALLBACK_FPS), []
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
    if not len(ahead_s):
        return [], 0.0
    much_s = _JUMP_FRAMES * float(np.quantile(ahead_s, _USUAL_SHARE))
    jumps = (gaps_s > max(_JUMP_S, much_s)) | (gaps_s < -much_s)
    return (np.flatnonzero(jumps) + 1).tolist(), float(np.median(ahead_s))
