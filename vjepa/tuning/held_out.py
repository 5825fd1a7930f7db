"""Clips that no trial learns from, to score it on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from vjepa import config
from vjepa.data.clip_index import ClipIndex
from vjepa.data.joined_index import are_shared, open_index
from vjepa.data.loader import eval_loader
from vjepa.data.sources import TrainSource
from vjepa.errors import UserError
from vjepa.probing.splits import Split, hold_out

MOST_CLIPS: Final = 128  # that are scored, unless monitor.clips names another number
_FEWEST: Final = 4


@dataclass(frozen=True)
class HeldOut:
    """Name rows of an index, int64 [n]; `said`: in words where they come from."""

    index: ClipIndex
    rows: np.ndarray
    said: str

    @classmethod
    def of(cls, settings: config.Config) -> HeldOut:
        """Take data.selection or, without it, a fifth of data.train by a hash of each row's group.

        Raises UserError where data.train cannot be divided so, or too few clips are left.
        """
        data = settings.data
        source = data.selection or data.train
        index = open_index(source.paths)
        rows, said = index.select(source.where), "of data.selection"
        if data.selection is None:
            parts = hold_out(Split(index, rows, {}), settings.eval.group)
            rows, said = parts[1].rows, "a fifth of data.train, by hash: name data.selection to choose them"
        if len(rows) < _FEWEST:
            raise UserError(
                f"{index.path}: {len(rows)} clips are held out, too few to score a trial on; name {_FEWEST} or more "
                "as data.selection"
            )
        return cls(index, rows, f"{len(rows)} clips held out ({said})")

    def left_of(self, source: TrainSource) -> TrainSource:
        """Give a source without the rows that are held out. Raises UserError where none is left."""
        parts = []
        for part in source.parts:
            is_held = are_shared(part.index, part.rows, self.index, self.rows)
            if is_held.all():
                raise UserError(f"{part.name}: all of its clips are in data.selection; give other rows to one of them")
            parts.append(replace(part, rows=part.rows[~is_held]))
        return replace(source, parts=tuple(parts))

    def read(self, settings: config.Config) -> Tensor:
        """Read at most `monitor.clips` or MOST_CLIPS of them, evenly among all: uint8 [B, 3, T, H, W]."""
        num = min(settings.monitor.clips or MOST_CLIPS, len(self.rows))
        places = np.unique(np.linspace(0, len(self.rows) - 1, num).astype(int))
        batches = eval_loader(self.index, self.rows[places], settings.data, min(num, 8), settings.data.workers)
        videos = torch.cat([batch.video for batch in batches])
        if len(videos) < _FEWEST:
            raise UserError(f"{self.index.path}: only {len(videos)} of the held out clips can be read")
        return videos
