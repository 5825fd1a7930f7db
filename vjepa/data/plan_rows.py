"""Plans of one pass over rows of an index: every row once, in order, looked at in a number of ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from vjepa.config import Data
from vjepa.counter_rng import generator
from vjepa.data.clip_index import ClipIndex, IndexRow
from vjepa.data.frame_times import frame_ids, observed_frames
from vjepa.data.images import Images
from vjepa.data.plan import Attempt, BatchPlan, Decode, clip_bytes, even_crops, random_crop
from vjepa.data.quarantine import quarantined

_PASSES_PER_ROW: Final = 1 << 20  # room for the number of a pass in the counter of a row

FramesAt = Callable[[float], np.ndarray]  # a position in [0, 1) of a video -> int64 [T]


@dataclass(frozen=True)
class Views:
    """Look at a video `num_clips` times evenly in time, and at `num_crops` places evenly along the frame."""

    num_clips: int = 1
    num_crops: int = 1

    @property
    def num_views(self) -> int:
        return self.num_clips * self.num_crops

    def decodes(self, row: IndexRow, data: Data, frames_at: FramesAt) -> list[Decode]:
        """Plan the views of a row; nothing is random."""
        crops, ids = even_crops(row, data, self.num_crops), (row.clip_id,)
        middles = [(clip + 0.5) / self.num_clips for clip in range(self.num_clips)]
        return [Decode((0, row.clip_id), row, frames_at(middle), ids, crops) for middle in middles]


@dataclass(frozen=True)
class Passes:
    """Look at a video `num` times, each time at a random clip and a random crop, to learn from.

    Pass number p of a row is fixed by (seed, row, p), whatever `num` is.
    """

    num: int
    seed: int = 0

    @property
    def num_views(self) -> int:
        return self.num

    def decodes(self, row: IndexRow, data: Data, frames_at: FramesAt) -> list[Decode]:
        """Plan the passes over a row."""
        return [self._decode(row, data, frames_at, number) for number in range(self.num)]

    def _decode(self, row: IndexRow, data: Data, frames_at: FramesAt, number: int) -> Decode:
        rng = generator(self.seed, "probe_views", row.clip_id * _PASSES_PER_ROW + number)
        ids = frames_at(rng.random())
        return Decode((0, row.clip_id), row, ids, (row.clip_id,), (random_crop(rng, row, data),))


@dataclass(frozen=True)
class RowPlan:
    """Plan batch number k as rows k * n to k * n + n - 1, n = `rows_per_batch`, every view of a row side by side.

    index: of clips, or of pictures that `ReadImages` reads. rows: int64 [N].
    ahead_s: None, or for action anticipation how long before the end of its row every clip ends.
    """

    index: ClipIndex | Images
    rows: np.ndarray
    data: Data
    rows_per_batch: int
    looks: Views | Passes
    ahead_s: float | None = None

    def __len__(self) -> int:
        return -(-len(self.rows) // self.rows_per_batch)

    @property
    def batch_bytes(self) -> int:
        return clip_bytes(self.data) * self.rows_per_batch * self.looks.num_views

    def quarantine(self) -> dict[tuple[int, int], str]:
        named = quarantined(self.index) if isinstance(self.index, ClipIndex) else {}
        return {(0, row): reason for row, reason in named.items()}

    def place(self, source: int, clip_id: int) -> tuple[ClipIndex, int] | None:
        return (self.index, clip_id) if isinstance(self.index, ClipIndex) else None

    def uri(self, source: int, clip_id: int) -> str:
        return self.index.uri(clip_id)

    def batch(self, number: int) -> BatchPlan:
        """Plan one batch. A row that cannot be read is left out."""
        rows = self.rows[number * self.rows_per_batch : (number + 1) * self.rows_per_batch].tolist()
        return BatchPlan(self.data, [[Attempt(i, partial(self._decodes, i))] for i in rows])

    def _decodes(self, i: int) -> list[Decode]:
        row = self.index.row(i)
        return self.looks.decodes(row, self.data, partial(self._frames, row))

    def _frames(self, row: IndexRow, position: float) -> np.ndarray:
        if self.ahead_s is None:
            return frame_ids(row, self.data, position)
        return observed_frames(row, self.data, self.ahead_s)
