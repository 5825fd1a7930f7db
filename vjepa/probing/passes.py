"""Augmented passes over rows of an index: each a random clip and a random crop of every row, fixed by (seed, row,
pass).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from vjepa.config import Data
from vjepa.counter_rng import generator
from vjepa.data.augment import random_crop_box
from vjepa.data.clip_index import ClipIndex, IndexRow
from vjepa.data.clips import EvalClips, Views, frame_ids

_PASSES_PER_ROW = 1 << 20  # room for the number of a pass in the counter of a row


@dataclass(frozen=True)
class Passes:
    """Augmented views to learn from: `num` of each row, drawn by `seed`. Pass number p is the same whatever
    `num` is.
    """

    num: int
    seed: int = 0


class AugmentedClips(EvalClips):
    """Item number k holds rows k * batch to k * batch + batch - 1, the passes of a row side by side."""

    def __init__(self, index: ClipIndex, rows: np.ndarray, data: Data, batch: int, passes: Passes) -> None:
        super().__init__(index, rows, data, batch, Views(num_clips=passes.num))
        self.passes = passes

    def _views(self, row: IndexRow) -> list[torch.Tensor]:
        views = []
        for number in range(self.passes.num):
            rng = generator(self.passes.seed, "probe_views", row.clip_id * _PASSES_PER_ROW + number)
            ids = self._frame_ids(row, rng.random())
            box = random_crop_box(rng, row.height, row.width, self.data.crop_scale, self.data.crop_aspect)
            flip = bool(self.data.flip and rng.random() < 0.5)
            views += self.crops(row, (0, row.clip_id), ids, [box], [flip], self.data.crop_px)
        return views

    def _frame_ids(self, row: IndexRow, position: float) -> np.ndarray:
        return frame_ids(row, self.data, position)
