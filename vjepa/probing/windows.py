"""Clips of videos by number: so many of each, evenly in time, or a window that slides over it. Every clip has its
times.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import numpy as np
import torch

from vjepa.config import Data
from vjepa.data.augment import view_boxes
from vjepa.data.clip_index import ClipIndex, IndexRow
from vjepa.data.clips import Clips, batch_of, clip_bytes, frame_ids, one_thread
from vjepa.data.decode import DecodeError
from vjepa.data.frame_times import frame_ids_at
from vjepa.data.quarantine import quarantined
from vjepa.records import Clip, ClipBatch

_DECODE_BYTES: Final = 256 << 20  # frames of several windows that are decoded together


@dataclass(frozen=True)
class Cut:
    """How a video is cut: `num_clips` clips evenly in time, read as the settings of the data say; or windows of
    `window_s`, one every `stride_s`.

    Only whole windows count, so that up to `stride_s` at the end is in none; a video shorter than a window is a single
    one.
    """

    num_clips: int = 1
    window_s: float | None = None
    stride_s: float | None = None

    def count(self, row: IndexRow) -> int:
        """Number of clips of a video."""
        if self.window_s is None or self.stride_s is None:
            return self.num_clips
        return max(1, 1 + math.floor((row.end_s - row.start_s - self.window_s) / self.stride_s + 1e-6))

    def clip(self, row: IndexRow, data: Data, number: int) -> tuple[np.ndarray, float, float]:
        """The frames of clip `number`, int64 [T]; and from when to when it lasts, in seconds on the clock of the
        file.
        """
        times = row.times()
        if self.window_s is None or self.stride_s is None:
            ids = frame_ids(row, data, (number + 0.5) / self.num_clips)
            last = int(ids.max())
            return ids, float(times[ids.min()]), float(times[last + 1]) if last + 1 < len(times) else row.end_s
        start_s = row.start_s + number * self.stride_s
        ids = frame_ids_at(times, start_s + np.arange(data.num_frames) * (self.window_s / data.num_frames))
        return ids, start_s, min(start_s + self.window_s, row.end_s)


@dataclass(frozen=True)
class CutVideos:
    """All clips of some rows of an index, in order. Clip number u is clip `numbers[u]` of row `rows[u]`; both int64
    [U].
    """

    index: ClipIndex
    data: Data
    cut: Cut
    rows: np.ndarray
    numbers: np.ndarray

    @classmethod
    def of(cls, index: ClipIndex, selected: np.ndarray, data: Data, cut: Cut) -> CutVideos:
        """`selected`: int64 [n], numbers of rows."""
        counts = [cut.count(index.row(i)) for i in selected.tolist()]
        numbers = np.concatenate([np.arange(count) for count in counts])
        return cls(index, data, cut, np.repeat(selected, counts), numbers)

    def __len__(self) -> int:
        return len(self.rows)

    def times_s(self, clips: Sequence[int]) -> np.ndarray:
        """float64 [n, 2]: from when to when each of `clips` lasts."""
        found = [self.cut.clip(self.index.row(int(self.rows[u])), self.data, int(self.numbers[u]))[1:] for u in clips]
        return np.array(found, dtype=np.float64).reshape(-1, 2)


class CutClips(Clips):
    """Item number k holds the clips `batches[k]` of `videos`, the centre of each frame; clip ids are numbers of clips,
    not rows.

    Clips of one video that lie in one batch are decoded together: windows overlap, and some decoders read from the
    start each time.
    """

    def __init__(self, videos: CutVideos, batches: Sequence[range]) -> None:
        super().__init__()
        self.videos, self.batches = videos, batches
        self.watch.quarantine |= {(0, row): reason for row, reason in quarantined(videos.index).items()}

    @property
    def batch_bytes(self) -> int:
        return clip_bytes(self.videos.data) * max(map(len, self.batches), default=0)

    def place(self, source: int, clip_id: int) -> tuple[ClipIndex, int]:
        """What is watched while it is read is a row."""
        return self.videos.index, clip_id

    def __getitem__(self, k: int) -> ClipBatch:
        """A clip that cannot be read is left out and named in `failures`; B may be 0."""
        clips: list[Clip] = []
        failures: list[tuple[int, str]] = []
        with one_thread():
            for row, together in self._decodes(self.batches[k]):
                try:
                    clips += self._read(row, together)
                except DecodeError:
                    self._read_each(row, together, clips, failures)
            return batch_of(clips, self.videos.data, tuple(failures))

    def _decodes(self, batch: range) -> Iterator[tuple[IndexRow, list[int]]]:
        """The clips of a batch that share a decode, with their row."""
        for number, units in groupby(batch, key=lambda u: int(self.videos.rows[u])):
            row, clips = self.videos.index.row(number), list(units)
            most = max(1, _DECODE_BYTES // (3 * row.height * row.width * self.videos.data.num_frames))
            for first in range(0, len(clips), most):
                yield row, clips[first : first + most]

    def _read(self, row: IndexRow, clips: Sequence[int]) -> list[Clip]:
        data = self.videos.data
        ids = np.concatenate([self.videos.cut.clip(row, data, int(self.videos.numbers[u]))[0] for u in clips])
        (frames,) = self.crops(row, (0, row.clip_id), ids, view_boxes(row.height, row.width, 1), [False], data.crop_px)
        return [Clip(video, u) for video, u in zip(torch.split(frames, data.num_frames, dim=1), clips, strict=True)]

    def _read_each(
        self, row: IndexRow, together: Sequence[int], clips: list[Clip], failures: list[tuple[int, str]]
    ) -> None:
        """One window that cannot be read must not take those with it that can."""
        for u in together:
            try:
                clips += self._read(row, [u])
            except DecodeError as error:
                failures.append((u, str(error)))
