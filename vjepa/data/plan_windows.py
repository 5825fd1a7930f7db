"""Plans of clips by number: so many of each video, evenly in time, or a window that slides over it.

Every clip has its times.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Final

import numpy as np

from vjepa.config import Data
from vjepa.data.clip_index import ClipIndex, IndexRow
from vjepa.data.frame_times import frame_ids, frame_ids_at
from vjepa.data.plan import Attempt, BatchPlan, Decode, clip_bytes, even_crops
from vjepa.data.quarantine import quarantined

_DECODE_BYTES: Final = 256 << 20  # frames of several windows that are decoded together


@dataclass(frozen=True)
class Cut:
    """Cut a video into `num_clips` clips evenly in time, or into windows of `window_s`, one every `stride_s`.

    Clips evenly in time are read as the settings of the data say. Only whole windows count, so that up to `stride_s` at
    the end is in none; a video shorter than a window is a single one.
    """

    num_clips: int = 1
    window_s: float | None = None
    stride_s: float | None = None

    def count(self, row: IndexRow) -> int:
        """Count the clips of a video."""
        if self.window_s is None or self.stride_s is None:
            return self.num_clips
        times, end_s = row.clock()
        return max(1, 1 + math.floor((end_s - float(times[0]) - self.window_s) / self.stride_s + 1e-6))

    def clip(self, row: IndexRow, data: Data, number: int) -> tuple[np.ndarray, float, float]:
        """Give the frames of clip `number`, int64 [T], and from when to when it lasts, in seconds of `row.clock`."""
        times, end_s = row.clock()
        if self.window_s is None or self.stride_s is None:
            ids = frame_ids(row, data, (number + 0.5) / self.num_clips)
            last = int(ids.max())
            return ids, float(times[ids.min()]), float(times[last + 1]) if last + 1 < len(times) else end_s
        start_s = float(times[0]) + number * self.stride_s
        ids = frame_ids_at(times, start_s + np.arange(data.num_frames) * (self.window_s / data.num_frames))
        return ids, start_s, min(start_s + self.window_s, end_s)


@dataclass(frozen=True)
class EveryFrame(Cut):
    """Cut a video into its frames, each a clip of its own."""

    def count(self, row: IndexRow) -> int:
        """Count the frames of a video."""
        return row.num_frames

    def clip(self, row: IndexRow, data: Data, number: int) -> tuple[np.ndarray, float, float]:
        """Give frame `number`, and from when to when it is seen, in seconds of the file."""
        times = row.times()
        end_s = float(times[number + 1]) if number + 1 < len(times) else row.end_s
        return np.array([number]), float(times[number]), end_s


@dataclass(frozen=True)
class CutVideos:
    """List the clips of some rows of an index, in order, by number.

    Clip number u is clip `numbers[u]` of row `rows[u]`; both int64 [U].
    """

    index: ClipIndex
    data: Data
    cut: Cut
    rows: np.ndarray
    numbers: np.ndarray

    @classmethod
    def of(cls, index: ClipIndex, selected: np.ndarray, data: Data, cut: Cut) -> CutVideos:
        """Cut the rows `selected`, int64 [n]."""
        counts = [cut.count(index.row(i)) for i in selected.tolist()]
        numbers = np.concatenate([np.arange(count) for count in counts])
        return cls(index, data, cut, np.repeat(selected, counts), numbers)

    def __len__(self) -> int:
        return len(self.rows)

    def frame_ids(self, row: IndexRow, u: int) -> np.ndarray:
        """Give the frames of clip number u, which is of `row`: int64 [T]."""
        return self.cut.clip(row, self.data, int(self.numbers[u]))[0]

    def times_s(self, clips: Sequence[int]) -> np.ndarray:
        """Give from when to when each of `clips` lasts: float64 [n, 2]."""
        found = [self.cut.clip(self.index.row(int(self.rows[u])), self.data, int(self.numbers[u]))[1:] for u in clips]
        return np.array(found, dtype=np.float64).reshape(-1, 2)


@dataclass(frozen=True)
class WindowPlan:
    """Plan batch number k as the clips `batches[k]` of `videos`, the centre of each frame.

    Clip ids are numbers of clips, not rows. Clips of one video that lie in one batch are decoded together: windows
    overlap, and some decoders read from the start each time.
    """

    videos: CutVideos
    batches: Sequence[range]

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def batch_bytes(self) -> int:
        return clip_bytes(self.videos.data) * max(map(len, self.batches), default=0)

    def quarantine(self) -> dict[tuple[int, int], str]:
        """Read why rows must not be decoded: a row is what is watched, not a clip."""
        return {(0, row): reason for row, reason in quarantined(self.videos.index).items()}

    def place(self, source: int, clip_id: int) -> tuple[ClipIndex, int]:
        return self.videos.index, clip_id

    def uri(self, source: int, clip_id: int) -> str:
        return self.videos.index.uri(clip_id)

    def batch(self, number: int) -> BatchPlan:
        """Plan one batch. A clip that cannot be read is left out, and takes no other of its video with it."""
        return BatchPlan(self.videos.data, [[self._attempt(*together)] for together in self._together(number)])

    def _together(self, number: int) -> Iterator[tuple[IndexRow, list[int]]]:
        """Group the clips of a batch that share a decode, with their row."""
        for i, group in groupby(self.batches[number], key=lambda u: int(self.videos.rows[u])):
            row, clips = self.videos.index.row(i), list(group)
            most = max(
                1,
                _DECODE_BYTES
                // (row.height * row.width * clip_bytes(self.videos.data) // math.prod(self.videos.data.crop_size)),
            )
            for first in range(0, len(clips), most):
                yield row, clips[first : first + most]

    def _attempt(self, row: IndexRow, clips: Sequence[int]) -> Attempt:
        parts = tuple(self._attempt(row, [u]) for u in clips) if len(clips) > 1 else ()
        return Attempt(clips[0], partial(self._decodes, row, clips), parts)

    def _decodes(self, row: IndexRow, clips: Sequence[int]) -> list[Decode]:
        ids = np.concatenate([self.videos.frame_ids(row, u) for u in clips])
        return [Decode((0, row.clip_id), row, ids, tuple(clips), even_crops(row, self.videos.data, 1))]
