"""Where training clips come from: rows of clip indices, mixed by step or by clip."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from vjepa.config import Data, Source
from vjepa.data.actions import require_tracks
from vjepa.data.channels import require_channels
from vjepa.data.clip_index import ClipIndex
from vjepa.data.joined_index import open_index
from vjepa.data.tracks import joined_tracks


@dataclass(frozen=True)
class Part:
    """Hold rows of one index.

    rows: int64 [n], n >= 1.
    first_id: the clip id of row 0 of the index. Clip ids count the rows of every index of a source, one index after
    the other.
    """

    name: str
    index: ClipIndex
    rows: np.ndarray
    first_id: int = 0


@dataclass(frozen=True)
class TrainSource:
    """Hold the clips to learn from that share batches.

    name: its path in the config: data.train, or a source of data.mix that has batches of its own.
    data: the settings that hold for its clips.
    parts: its own rows, then those of each source that is mixed into its batches.
    """

    name: str
    data: Data
    parts: tuple[Part, ...]

    @property
    def num_rows(self) -> int:
        return sum(len(part.rows) for part in self.parts)

    def place(self, clip_id: int) -> tuple[ClipIndex, int]:
        """Find the index and the row of a clip."""
        part = self.parts[bisect_right([part.first_id for part in self.parts], clip_id) - 1]
        return part.index, clip_id - part.first_id

    def uri(self, clip_id: int) -> str:
        """Say where the video of a clip is."""
        index, row = self.place(clip_id)
        return index.uri(row)


def open_sources(data: Data) -> list[TrainSource]:
    """Open data.train and every source of data.mix that has its own batches, in order.

    Raises UserError for a missing index or column, or where no row matches.
    """
    opened: dict[tuple[str, ...], ClipIndex] = {}  # clips and stills of the same videos share one index
    sources = []
    for name, settings in data.sources.items():
        named: dict[str, Source] = {name: settings.train}
        if name == "data.train":
            named |= {f"data.mix.{number}": source for number, source in enumerate(data.mix) if source.per == "clip"}
        parts: list[Part] = []
        for part_name, source in named.items():
            index = opened[source.paths] = opened.get(source.paths) or open_index(source.paths)
            rows = index.select(source.where)
            require_channels(index, rows, data.channels)
            require_tracks(index, rows, settings)
            first_id = parts[-1].first_id + len(parts[-1].index) if parts else 0
            parts.append(Part(part_name, index, rows, first_id))
        if settings.actions:  # the same numbers in one batch
            joined_tracks([(part.name, part.index.tracks) for part in parts])
        sources.append(TrainSource(name, settings, tuple(parts)))
    return sources
