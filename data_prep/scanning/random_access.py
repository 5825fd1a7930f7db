"""Which decoder gives the right frames of a file on random access: those that were decoded in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any, Final

import numpy as np

from vjepa.data.clip_index import IndexRow
from vjepa.data.decode import is_installed, open_decord, read_frames
from vjepa.data.media import DecodeError, open_media

CANDIDATES: Final = ("decord", "torchcodec", "pyav_seek")  # the quickest first
TURNING: Final = ("decord", "torchcodec")  # by themselves, and they know of no mirrors
_NUM_CENTRES: Final = 8  # frames spread over the file, and keyframes, that are kept with their neighbours
_NEIGHBOURS: Final = 3  # decoders are known to be 1 to 3 frames early on packed B-frames
_NUM_RUNS: Final = 3  # about so many clips of consecutive frames around keyframes are read
_MAX_DIFFERENCE: Final = 12.0  # mean levels of 255; decoders differ by a few in colour conversion
_TIE: Final = 0.05  # levels; frames that are this alike cannot be told apart


class Samples:
    """Keep small copies of some frames and of their neighbours, while a file is decoded in order.

    Which ones is not known before the end: frames spread over the file, frames around keyframes, and the last ones.
    So the latest few pictures are at hand, and the choice is thinned out as the file goes on.
    """

    def __init__(self, picture: Callable[[Any], np.ndarray]) -> None:
        """Take a function from a frame of PyAV to uint8 [H, W, 3]; it is costly, and called for few frames only."""
        self._picture = picture
        self._latest: deque[tuple[int, Any]] = deque(maxlen=_NEIGHBOURS + 1)
        self._until = -1
        self.points: dict[int, np.ndarray] = {}
        self.spread, self.keyframes = Thinned(), Thinned()

    def add(self, i: int, frame: Any) -> None:
        """Take frame number `i`, in order."""
        self._latest.append((i, frame))
        chosen = [self.spread.offer(i), bool(frame.key_frame) and self.keyframes.offer(i)]
        if any(chosen):
            self._until = i + _NEIGHBOURS
            self._forget()
            self._keep_latest()
        elif i <= self._until:
            self._keep(i, frame)

    def end(self) -> None:
        """Keep the last frames; no more come."""
        self._keep_latest()
        self._latest.clear()

    def checks(self) -> Iterator[np.ndarray]:
        """Yield frame numbers of the clips to read, each int64 [n] ascending.

        Single frames are among them where there are several keyframes.
        """
        last, keys = max(self.points), self.keyframes.kept
        spread, end = {*self.spread.kept, last}, set(range(max(0, last - _NEIGHBOURS), last + 1))
        if len(keys) == 1:  # every read decodes from the start, wherever it goes: one does for all
            yield np.array(sorted(spread | end))
            return
        yield np.array(sorted(spread))
        yield np.array(sorted(end))
        for key in keys[1 :: max(1, len(keys) // _NUM_RUNS)]:
            yield np.arange(key - 1, min(key + 1, last) + 1)
        middle = self.spread.kept[len(self.spread.kept) // 2]
        for single in sorted({0, last, keys[-1], middle}):
            yield np.array([single])

    def keyframe_checks(self) -> Iterator[np.ndarray]:
        """Yield frame numbers of clips that start at a keyframe, as `checks` does."""
        last, keys = max(self.points), self.keyframes.kept
        for key in keys[:: max(1, len(keys) // _NUM_RUNS)]:
            yield np.arange(key, min(key + _NEIGHBOURS, last) + 1)

    def is_frame(self, i: int, frame: np.ndarray) -> bool:
        """Tell whether uint8 [H, W, 3] is frame `i`, and not a neighbour of it."""
        points = small(frame)
        if points.shape != self.points[i].shape:
            return False  # another stream of the file, or rotated otherwise
        near = [
            j
            for j in range(i - _NEIGHBOURS, i + _NEIGHBOURS + 1)
            if j in self.points and self.points[j].shape == points.shape
        ]
        away = dict(zip(near, mean_differences(np.stack([self.points[j] for j in near]), points), strict=True))
        return bool(away[i] <= min(_MAX_DIFFERENCE, min(away.values()) + _TIE))

    def _keep_latest(self) -> None:
        for i, frame in self._latest:
            self._keep(i, frame)

    def _keep(self, i: int, frame: Any) -> None:
        if i not in self.points:
            self.points[i] = small(self._picture(frame))

    def _forget(self) -> None:
        centres = self.spread.kept + self.keyframes.kept
        self.points = {
            i: points for i, points in self.points.items() if any(abs(i - centre) <= _NEIGHBOURS for centre in centres)
        }


class Thinned:
    """Keep at most `_NUM_CENTRES` of any number of frames, evenly spread over those that were offered."""

    def __init__(self) -> None:
        self.kept: list[int] = []
        self._offered, self._stride = 0, 1

    def offer(self, i: int) -> bool:
        """Tell whether frame `i` is kept, for now."""
        chosen = self._offered % self._stride == 0
        self._offered += 1
        if chosen:
            if len(self.kept) == _NUM_CENTRES:
                self.kept, self._stride = self.kept[::2], self._stride * 2
            self.kept.append(i)
        return chosen


def small(picture: np.ndarray) -> np.ndarray:
    """Thin out uint8 [H, W, 3] to [<= 64, <= 64, 3]: single pixels, so that they tell a frame from the next."""
    height, width, _ = picture.shape
    return picture[:: -(-height // 64), :: -(-width // 64)].copy()


def mean_differences(pictures: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Measure by how many levels each of uint8 [n, H, W, 3] is away from [H, W, 3], in the mean: float64 [n]."""
    levels: np.ndarray = difference_sums(pictures, picture) / picture.size
    return levels


def difference_sums(pictures: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Sum by how many levels each of uint8 [n, H, W, 3] is away from [H, W, 3]: uint32 [n].

    No wider type than bytes is needed on the way.
    """
    apart = np.maximum(pictures, picture)
    apart -= np.minimum(pictures, picture)
    sums: np.ndarray = apart.reshape(len(pictures), -1).sum(axis=1, dtype=np.uint32)
    return sums


def exact_decoder(row: IndexRow, samples: Samples, excluded: Collection[str], announce: Callable[[str], None]) -> str:
    """Find the quickest decoder that reads every checked frame of `row` right; else "pyav", which reads in order.

    row: the whole file. announce: is told of a decoder before each clip that it reads, for it may spin or crash.
    """
    for decoder in CANDIDATES:
        if decoder not in excluded and is_exact(replace(row, decoder=decoder), samples, announce):
            return decoder
    return "pyav"


def is_exact(row: IndexRow, samples: Samples, announce: Callable[[str], None]) -> bool:
    """Tell whether the decoder of `row` gives the frames of decoding in order, however they are asked for."""
    try:
        announce(row.decoder)
        if not is_installed(row.decoder):
            return False
        # where decord counts frames that cannot be decoded, its threads fail on others now and then, each time on other
        # ones
        if row.decoder == "decord" and row.num_frames != len(open_decord(open_media(row.uri, row.offset, row.length))):
            return False
    except DecodeError:
        return False
    return _reads(row, samples, samples.checks(), announce)


def keyframe_decoder(
    row: IndexRow, samples: Samples, excluded: Collection[str], announce: Callable[[str], None]
) -> str | None:
    """Find a decoder that is quicker than that of `row`, and exact, for clips that start at a keyframe; None for none.

    decord goes through the packets of the whole file before it decodes any, and hands every frame from thread to
    thread: PyAV reads 16 of 61 frames from a keyframe of a film of 900 in four fifths of decord's time
    (configs/RESULTS.md).
    """
    seeking = replace(row, decoder="pyav_seek")
    is_quicker = row.decoder in ("decord", "torchcodec") and seeking.decoder not in excluded
    return seeking.decoder if is_quicker and _reads(seeking, samples, samples.keyframe_checks(), announce) else None


def _reads(row: IndexRow, samples: Samples, checks: Iterator[np.ndarray], announce: Callable[[str], None]) -> bool:
    """Tell whether the decoder of `row` gives the right frames of every check."""
    try:
        for ids in checks:
            announce(row.decoder)
            frames = read_frames(row, ids)
            if not all(samples.is_frame(i, frame) for i, frame in zip(ids.tolist(), frames, strict=True)):
                return False
    except DecodeError:
        return False
    return True
