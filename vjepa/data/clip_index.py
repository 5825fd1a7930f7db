"""The clip index: one Parquet table that knows of every video what could hang or lie at training time.

`data_prep.index` measures and writes it; training only reads it. Times are in seconds on the clock of the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vjepa.errors import UserError

SCHEMA_VERSION: Final = 1
_VERSION_KEY: Final = b"vjepa_clip_index_version"
_REMEDY: Final = "python -m data_prep.index FOLDER --out x.parquet"

SCHEMA: Final = pa.schema(
    [
        ("uri", pa.string()),  # path; relative to the folder of the index where inside it, else absolute
        ("offset", pa.int64()),  # bytes; null: the whole file
        ("length", pa.int64()),
        ("start_s", pa.float64()),  # time of the first frame
        ("end_s", pa.float64()),  # when the last frame leaves the screen
        ("num_frames", pa.int32()),  # that can be decoded, whatever the header says
        ("fps", pa.float64()),  # true mean rate
        ("times_s", pa.list_(pa.float64())),  # time of each frame; null: start_s + i / fps
        ("width", pa.int32()),  # px, upright, square pixels
        ("height", pa.int32()),
        ("rotation", pa.int32()),  # degrees, counter-clockwise, that bring a stored picture upright: 0, 90, 180, 270
        ("sample_aspect", pa.float64()),  # width over height of a stored pixel
        ("codec", pa.string()),
        ("decoder", pa.string()),  # decord | pyav | image: the quickest that is exact on this file
        ("keyframes_s", pa.list_(pa.float64())),
        ("status", pa.string()),  # ok, or a reason in plain words
        ("label", pa.string()),
        ("label_id", pa.int32()),  # place of the label among the sorted names; -1: none
        ("split", pa.string()),
        ("group", pa.string()),
        ("content_hash", pa.string()),  # sha256, hex
    ]
)


@dataclass(frozen=True)
class IndexRow:
    """What it takes to read one clip. `clip_id` is its row in the index, `path` is absolute."""

    clip_id: int
    path: Path
    start_s: float
    end_s: float
    num_frames: int
    fps: float
    times_s: np.ndarray | None
    width: int
    height: int
    rotation: int
    sample_aspect: float
    codec: str
    decoder: str

    def times(self) -> np.ndarray:
        """Time of each frame in seconds: float64 [num_frames], ascending."""
        if self.times_s is not None:
            return self.times_s
        return self.start_s + np.arange(self.num_frames) / self.fps


class ClipIndex:
    """An open clip index. Pickles as its path, so a worker process opens its own."""

    def __init__(self, path: Path, table: pa.Table) -> None:
        self.path = path
        self._table = table

    @classmethod
    def open(cls, path: str | Path) -> ClipIndex:
        """Map the file into memory. Raises UserError where it is missing, or no clip index of this version."""
        path = Path(path).absolute()
        if not path.is_file():
            raise UserError(f"{path}: no such clip index; make it with `{_REMEDY}`")
        version = index_version(path)
        if version is None:
            raise UserError(f"{path}: not a clip index; make one with `{_REMEDY}`")
        if version != SCHEMA_VERSION:
            raise UserError(f"{path}: clip index of version {version}, this program reads version {SCHEMA_VERSION}; make it again with `{_REMEDY}`")
        try:
            table = pq.read_table(path, memory_map=True)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: damaged clip index ({' '.join(str(error).split())}); make it again with `{_REMEDY}`") from None
        return cls(path, table)

    def __reduce__(self) -> tuple[Any, ...]:
        return ClipIndex.open, (self.path,)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @cached_property
    def _columns(self) -> dict[str, Any]:
        """Every column in one piece, because finding a row among chunks is slow."""
        return {name: self._table[name].combine_chunks() for name in SCHEMA.names}

    def row(self, i: int) -> IndexRow:
        """The row number `i`. Raises IndexError outside of the index."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of an index of {len(self)} rows")
        columns = self._columns
        fields = {name: columns[name][i].as_py() for name in IndexRow.__dataclass_fields__ if name not in ("clip_id", "path", "times_s")}
        times = columns["times_s"][i]
        return IndexRow(
            clip_id=int(i),
            path=self.path.parent / columns["uri"][i].as_py(),
            times_s=times.values.to_numpy() if times.is_valid else None,
            **fields,
        )

    def column(self, name: str) -> list[str | None]:
        """One value per row, as text; None where there is none. Raises UserError for an unknown column."""
        values: list[str | None] = self._text(name).to_pylist()
        return values

    def select(self, where: Mapping[str, str | int | list[str | int]]) -> np.ndarray:
        """Numbers of the usable rows (status ok) whose columns have the wanted values: int64 [n], n >= 1.

        Values are compared as text. Raises UserError for an unknown column, or where no row matches.
        """
        keep = pc.equal(self._table["status"], "ok")
        for name, wanted in where.items():
            values = [str(value) for value in (wanted if isinstance(wanted, list) else [wanted])]
            keep = pc.and_(keep, pc.is_in(self._text(name), value_set=pa.array(values, pa.string())))
        rows = np.flatnonzero(np.asarray(keep)).astype(np.int64)
        if not len(rows):
            wish = ", ".join(f"{name}={value}" for name, value in where.items()) or "any clip"
            raise UserError(f"{self.path}: none of its {len(self)} rows is usable (status ok) and matches {wish}")
        return rows

    def _text(self, name: str) -> Any:
        texts = [column for column in self._table.column_names if not pa.types.is_list(self._table.schema.field(column).type)]
        if name not in texts:
            raise UserError(f"{self.path}: no column {name!r}; it has {', '.join(texts)}")
        return pc.cast(self._table[name], pa.string())


def index_version(path: Path) -> int | None:
    """Schema version of a clip index; None where the file is none."""
    try:
        metadata = pq.read_schema(path, memory_map=True).metadata or {}
    except (pa.ArrowException, OSError):
        return None
    version = metadata.get(_VERSION_KEY, b"")
    return int(version) if version.isdigit() else None


def write_index(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows (column -> value) all at once or not at all; names outside of the schema become text columns."""
    path = Path(path)
    extra = sorted({name for row in rows for name in row} - set(SCHEMA.names))
    schema = pa.schema([*SCHEMA, *((name, pa.string()) for name in extra)], metadata={_VERSION_KEY: str(SCHEMA_VERSION)})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # a filter on `split` or a look at `label` should not decode the rest: Parquet keeps columns apart
        pq.write_table(pa.Table.from_pylist(list(rows), schema), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
