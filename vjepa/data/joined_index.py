"""Several clip indexes read as one: the rows of the first, then those of the next.

Each stays where it is, with its mapped copy and its quarantine. Columns go by their names: what an index lacks is empty
for its rows, and a label is the same class wherever it stands.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vjepa.data.clip_index import SCHEMA, ClipIndex, IndexRow
from vjepa.data.images import Images
from vjepa.data.tracks import joined_tracks
from vjepa.errors import UserError


def open_index(paths: Sequence[str]) -> ClipIndex:
    """Open a clip index, or several as one. Raises UserError as `ClipIndex.open`, and for one that is named twice."""
    indexes = [ClipIndex.open(path) for path in paths]
    files = [index.path.resolve() for index in indexes]
    twice = next((path for number, path in enumerate(files) if path in files[:number]), None)
    if twice:
        raise UserError(f"{twice}: is named twice, and its clips would count twice; name it once")
    return JoinedIndex(indexes) if len(indexes) > 1 else indexes[0]


def are_shared(index: ClipIndex | Images, rows: np.ndarray, other: ClipIndex, other_rows: np.ndarray) -> np.ndarray:
    """Tell which of `rows` are among `other_rows`, which may be of an index that shares files with it: bool [n]."""
    shared = np.zeros(len(rows), bool)
    for first, part in index.parts if isinstance(index, ClipIndex) else ():
        for other_first, other_part in other.parts:
            if part.path == other_part.path:
                inside = (other_rows >= other_first) & (other_rows < other_first + len(other_part))
                shared |= np.isin(rows, other_rows[inside] - other_first + first)
    return shared


class JoinedIndex(ClipIndex):
    """Read several clip indexes as one. path: those of all, for messages. `uri` is an absolute path, or an address."""

    def __init__(self, indexes: Sequence[ClipIndex]) -> None:
        self.path = Path(", ".join(str(index.path) for index in indexes))
        self._indexes = indexes
        self._starts = list(accumulate(map(len, indexes), initial=0))
        self.tracks = joined_tracks([(str(index.path), index.tracks) for index in indexes])

    def __reduce__(self) -> tuple[Any, ...]:
        return open_index, ([str(index.path) for index in self._indexes],)

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def parts(self) -> list[tuple[int, ClipIndex]]:
        return list(zip(self._starts, self._indexes, strict=False))

    @property
    def names(self) -> list[str]:
        own = sorted({name for index in self._indexes for name in index.names} - set(SCHEMA.names))
        return [*SCHEMA.names, *own]

    def row(self, i: int) -> IndexRow:
        index, place = self._place(i)
        return replace(index.row(place), clip_id=int(i))

    def uris(self) -> list[str]:
        return [uri for index in self._indexes for uri in index.uris()]

    def keyframes(self, i: int) -> np.ndarray:
        index, place = self._place(i)
        return index.keyframes(place)

    def cell(self, i: int, name: str) -> Any:
        return self.arrow(name)[int(i)].as_py()

    def records(self, names: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        for batch in pa.table({name: self.arrow(name) for name in names or self.names}).to_batches():
            yield from batch.to_pylist()

    def arrow(self, name: str) -> Any:
        """Read one value per row; `label_id` is the place of the label among those of all indexes."""
        if name not in self.names:
            raise UserError(f"{self.path}: no column {name!r}; it has {', '.join(self.names)}")
        if name == "label_id":
            labels = self.arrow("label").combine_chunks()
            classes = pa.array(sorted(set(labels.drop_null().to_pylist())), pa.string())
            return pa.chunked_array([pc.index_in(labels, classes).fill_null(-1)], pa.int32())
        kind = SCHEMA.field(name).type if name in SCHEMA.names else pa.string()
        return pa.chunked_array([chunk for index in self._indexes for chunk in _chunks(index, name, kind)], kind)

    def _place(self, i: int) -> tuple[ClipIndex, int]:
        """Find the index of row number `i`, and its row there."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of an index of {len(self)} rows")
        number = bisect_right(self._starts, i) - 1
        return self._indexes[number], int(i) - self._starts[number]


def _chunks(index: ClipIndex, name: str, kind: pa.DataType) -> list[Any]:
    """Read a column of one of the indexes; nulls where it has none."""
    if name == "uri":
        return [pa.array(index.uris(), kind)]
    if name not in index.names:
        return [pa.nulls(len(index), kind)]
    chunks: list[Any] = index.arrow(name).chunks
    return chunks
