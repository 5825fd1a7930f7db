"""Decode a video once, in order, and measure every frame on the way: only a few numbers for each stay in memory."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from time import monotonic
from typing import Any, Final

import av
import numpy as np

from data_prep.scanning.random_access import Samples, difference_sums
from data_prep.scanning.scenes import SceneDetector
from data_prep.scanning.track import Track
from vjepa.data.decode import rotation_of, upright
from vjepa.data.media import DecodeError, Media
from vjepa.data.pyav import open_video

_SMALL_PX: Final = 128  # long side of the pictures from which motion, black and frozen frames and scenes are measured
_PROGRESS_S: Final = 0.1


@dataclass(frozen=True)
class Measurement:
    """Hold what one pass over a video found.

    columns: codec, bit_depth, rotation and sample_aspect, as in the clip index.
    """

    track: Track
    columns: dict[str, Any]
    samples: Samples


def measure(
    media: Media, scene_threshold: float | None, progress: Callable[[int], None], most: int | None = None
) -> Measurement:
    """Decode `media` up to its end, or its first error. Raises DecodeError where no frame comes.

    scene_threshold: of `SceneDetector`; None looks for no scenes.
    progress: is told how many frames there are, ten times a second or so.
    most: frames to decode at most; what comes after them is not touched.
    """
    opened, meter, header_fps, told_s = False, None, 0.0, monotonic()
    try:
        with open_video(media) as (container, stream):
            opened, header_fps = True, float(stream.average_rate or stream.guessed_rate or 0)
            for i, frame in enumerate(islice(container.decode(stream), most)):
                meter = meter or _Meter(stream, frame, scene_threshold)
                meter.add(i, frame)
                if monotonic() > told_s + _PROGRESS_S:
                    progress(i + 1)
                    told_s = monotonic()
    except DecodeError as error:
        if meter is None or not meter.seconds:
            raise DecodeError("no decodable frame" if opened else str(error)) from None
    if meter is None:
        raise DecodeError("no decodable frame")
    return meter.result(header_fps)


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
        self.seconds = array("d")  # nan: not known
        self._level_sums, self._change_sums, self._keys = array("I"), array("I"), array("q")
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
        self._level_sums.append(int(small.sum(dtype=np.uint32)))
        self._change_sums.append(0 if before is None else int(difference_sums(before[None], small)[0]))
        self._small = small
        self.seconds.append(frame.time if frame.time is not None and math.isfinite(frame.time) else math.nan)

    def result(self, header_fps: float) -> Measurement:
        self.samples.end()
        width, height = self._small_px
        track = Track(
            seconds=np.array(self.seconds),
            num_values=3 * width * height,
            level_sums=np.array(self._level_sums),
            change_sums=np.array(self._change_sums),
            keyframes=np.array(self._keys, np.int64),
            sizes=self._sizes,
            scenes=self._scenes.starts if self._scenes else [],
            header_fps=header_fps,
        )
        return Measurement(track, self.columns, self.samples)

    def _upright(self, frame: Any) -> np.ndarray:
        return upright(self._to_upright, frame, self.rotation, self.aspect)

    def _shrink(self, frame: Any) -> np.ndarray:
        """Give uint8 [h, w, 3], as it is stored; of one size, also where the size of the frames changes."""
        width, height = self._small_px
        picture: np.ndarray = self._to_small.reformat(
            frame, width=width, height=height, format="rgb24", interpolation="AREA", threads=1
        ).to_ndarray()
        return picture
