"""The clip index: one Parquet table that knows of every video what could hang or lie at training time.

`data_prep.index` measures and writes it; training only reads it, from a copy that is mapped into memory. Times are in
seconds on the clock of the file.
"""

from __future__ import annotations

import json
import mmap
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vjepa.data.companions import Companions
from vjepa.data.mapped_copy import FACTS_KEY, PACKED, PACKED_COLUMN, mappable_copy, mapped
from vjepa.data.tracks import TRACKS_KEY, Moments, RowTracks, TrackInfo, Tracks
from vjepa.errors import UserError
from vjepa.files import whole_file

SCHEMA_VERSION: Final = 5
COMPANION: Final = "companion"  # a column of labels or a manifest: a film of the same clock, whose channels follow
SOURCE: Final = (
    "source"  # a column of an index of copies or shards: path or address of the file that a clip was made from
)
_VERSION_KEY: Final = b"vjepa_clip_index_version"
_REMEDY: Final = "python -m data_prep.index FOLDER --out x.parquet"
_ROWS_PER_GROUP: Final = 1 << 16
_TRACKED_PER_GROUP: Final = 1 << 22  # numbers of tracks, which may be many more than rows
# a read may map megabytes around its rows (large folios); without a release they add up to the whole file
_READS_BETWEEN_RELEASES: Final = 16

SCHEMA: Final = pa.schema(
    [
        # path, relative to the folder of the index where inside it, else absolute; or an fsspec address (s3://...)
        ("uri", pa.string()),
        ("offset", pa.int64()),  # bytes at which the file lies in a shard; null: `uri` is the file
        ("length", pa.int64()),
        ("first_frame", pa.int64()),  # number in the file of the first frame; 0 unless a longer video was cut
        ("cut_at", pa.string()),  # why it begins inside of its file: clock, size, scene, window; null: it does not
        ("start_s", pa.float64()),  # time of the first frame
        ("end_s", pa.float64()),  # when the last frame leaves the screen
        ("num_frames", pa.int32()),  # that can be decoded, whatever the header says
        ("fps", pa.float64()),  # true mean rate
        ("times_s", pa.list_(pa.float64())),  # time of each frame; null: start_s + i / fps
        ("keyframes_s", pa.list_(pa.float64())),  # times of the keyframes of this clip
        # flat, frames x size: what was commanded at each frame, nan where nothing followed the last; how things stood
        ("action", pa.list_(pa.float32())),
        ("state", pa.list_(pa.float32())),
        ("track_times_s", pa.list_(pa.float64())),  # when each frame was taken; null: at the time that the film says
        ("width", pa.int32()),  # px, upright, square pixels
        ("height", pa.int32()),
        # degrees, counter-clockwise, that bring a stored picture upright: 0, 90, 180, 270; 360 more: mirrored first
        ("rotation", pa.int32()),
        ("sample_aspect", pa.float64()),  # width over height of a stored pixel
        ("codec", pa.string()),
        ("bit_depth", pa.int32()),  # of the stored samples: 8, 10, 12, 16
        ("channels", pa.int32()),  # of a decoded frame; null: 3, red, green and blue
        ("bits", pa.int32()),  # of a decoded value: 8 or 16; null: 8
        ("axes", pa.string()),  # of a stack, a letter each: t, h, w, c; null: no stack
        ("decoder", pa.string()),  # of `decode.READERS`: the first that is exact on this file, wherever a clip starts
        ("keyframe_decoder", pa.string()),  # a quicker one, exact where a clip starts at a keyframe; null: none
        ("status", pa.string()),  # ok, or a reason in plain words
        ("label", pa.string()),
        ("label_id", pa.int32()),  # place of the label among the sorted names; -1: none
        ("split", pa.string()),
        ("group", pa.string()),
        ("motion_ratio", pa.float32()),  # mean change from frame to frame, as a share of white
        ("black_ratio", pa.float32()),  # share of frames that are black
        ("frozen_ratio", pa.float32()),  # share of the time in which nothing changes
        ("content_hash", pa.string()),  # sha256 of the file, hex
        ("duplicate_of", pa.string()),  # uri of the first file with the same content
        # size and change of the file when it was scanned: a new scan skips what is as it was
        ("file_bytes", pa.int64()),
        ("modified_ns", pa.int64()),
    ]
)


@dataclass(frozen=True)
class IndexRow:
    """Say what it takes to read one clip.

    clip_id: its row in the index. uri: an absolute path or an fsspec address.
    times_s: float64 [num_frames], ascending; None where the rate is constant.
    keyframe_decoder: in place of `decoder` for a clip that starts at a keyframe; None: the same.
    channels: of a decoded frame, of `bits` a value. axes: of a stack, a letter each: t, h, w, c.
    companion: a film of the same clock, whose channels follow. tracks: None where the row has none.
    """

    clip_id: int
    uri: str
    offset: int | None
    length: int | None
    first_frame: int
    start_s: float
    end_s: float
    num_frames: int
    fps: float
    times_s: np.ndarray | None
    width: int
    height: int
    rotation: int
    sample_aspect: float
    decoder: str
    keyframe_decoder: str | None = None
    channels: int = 3
    bits: int = 8
    axes: str = ""
    companion: IndexRow | None = None
    tracks: RowTracks | None = None

    def times(self) -> np.ndarray:
        """Give the time of each frame in seconds: float64 [num_frames], ascending."""
        if self.times_s is not None:
            return self.times_s
        return self.start_s + np.arange(self.num_frames) / self.fps

    def clock(self) -> tuple[np.ndarray, float]:
        """Give when each frame was taken, float64 [num_frames], and when the last one ends, in seconds.

        That is the clock by which frames are chosen: of the track where it has one of its own, as a container may say
        60 fps of a film that was taken at 15; else of the file.
        """
        if self.tracks is None or self.tracks.times_s is None:
            return self.times(), self.end_s
        times_s = self.tracks.times_s
        frame_s = float(times_s[-1] - times_s[0]) / (len(times_s) - 1) if len(times_s) > 1 else 1 / self.fps
        return times_s, float(times_s[-1]) + frame_s


class _Batch(NamedTuple):
    """Hold the columns of a stretch of rows that `ClipIndex.row` reads; views of the mapped file."""

    numbers: np.ndarray  # PACKED [n]
    uri: pa.Array
    times_s: pa.Array
    keyframes_s: pa.Array
    action: pa.Array
    state: pa.Array
    track_times_s: pa.Array


class ClipIndex:
    """Read a clip index that is open. It pickles as its path, so a worker process maps it for itself.

    tracks: what the action and the state of its frames are, and mean and deviation over its usable rows.
    """

    def __init__(self, path: Path, pages: mmap.mmap) -> None:
        self.path = path
        self._folder = _folder_of(path)
        self._pages = pages
        self._file = pa.ipc.open_file(pa.py_buffer(pages))
        # of each batch, and the number of rows
        self._first_rows = json.loads(self._file.schema.metadata[FACTS_KEY])["first_rows"]
        self.tracks = Tracks.from_json(self._file.schema.metadata.get(TRACKS_KEY, b"{}"))
        self._batches: dict[int, _Batch] = {}
        self._reads = 0
        self._has_companions = COMPANION in self._file.schema.names
        self._companions: Companions | None = None  # looked up where there are any

    @classmethod
    def open(cls, path: str | Path) -> ClipIndex:
        """Map the index into memory. Raises UserError where it is missing, or no clip index of this version."""
        path = Path(path).absolute()
        if not path.is_file():
            raise UserError(
                f"{path}: no such clip index; `{_REMEDY}` makes one of a folder of videos or images (ImageNet's train/)"
            )
        version = index_version(path)
        if version is None:
            raise UserError(f"{path}: not a clip index; make one with `{_REMEDY}`")
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{path}: clip index of version {version}, this program reads version {SCHEMA_VERSION}; make "
                f"it again with `{_REMEDY}`"
            )
        try:
            return cls(path, mapped(mappable_copy(path)))
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{path}: damaged clip index ({' '.join(str(error).split())}); make it again with `{_REMEDY}`"
            ) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return ClipIndex.open, (self.path,)

    def __len__(self) -> int:
        return int(self._first_rows[-1])

    @property
    def names(self) -> list[str]:
        """List all columns: those of the schema, then the user's own labels."""
        return [name for name in self._file.schema.names if name != PACKED_COLUMN]

    @property
    def parts(self) -> list[tuple[int, ClipIndex]]:
        """List the files that hold its rows: number of the first row, and the index that the file is alone."""
        return [(0, self)]

    def row(self, i: int) -> IndexRow:
        """Read row number `i`. Raises IndexError outside of the index."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of an index of {len(self)} rows")
        batch, place = self._locate(i)
        numbers = dict(zip(PACKED.names or (), batch.numbers[place].item(), strict=True))
        has_times, offset, length = (numbers.pop(name) for name in ("times", "offset", "length"))
        row = IndexRow(
            clip_id=int(i),
            uri=resolve(batch.uri[place].as_py(), self._folder),
            offset=None if offset < 0 else offset,
            length=None if length < 0 else length,
            times_s=batch.times_s[place].values.to_numpy() if has_times else None,
            decoder=numbers.pop("decoder").decode(),
            keyframe_decoder=numbers.pop("keyframe_decoder").decode() or None,
            axes=numbers.pop("axes").decode(),
            tracks=self._tracks_of(batch, place),
            **numbers,
        )
        if self._has_companions and (name := self.cell(i, COMPANION)):
            row = replace(row, companion=self._companion(row, name))
        self._reads += 1
        if self._reads % _READS_BETWEEN_RELEASES == 0:
            self._pages.madvise(mmap.MADV_DONTNEED)
        return row

    def uri(self, i: int) -> str:
        return self.row(i).uri

    def uris(self) -> list[str]:
        """Read of each row where its file is: an absolute path, or an address."""
        return [resolve(str(uri), self._folder) for uri in self.column("uri")]

    def _tracks_of(self, batch: _Batch, place: int) -> RowTracks | None:
        """Read the tracks of a row of a batch; None where it has none."""
        infos = {"action": self.tracks.action, "state": self.tracks.state}
        found = {
            name: cell.values.to_numpy().reshape(-1, info.size)
            for name, info in infos.items()
            if info and (cell := getattr(batch, name)[place]).is_valid
        }
        if not found:
            return None
        times_s = batch.track_times_s[place].values
        rotations = self.tracks.state.rotations if self.tracks.state else {}
        return RowTracks(**found, times_s=None if times_s is None else times_s.to_numpy(), rotations=rotations)

    def _companion(self, row: IndexRow, name: str) -> IndexRow | None:
        """Find the row of the companion `name` of a row. Raises UserError where there is none."""
        if self._companions is None:
            sources = self.column(SOURCE) if SOURCE in self.names else [None] * len(self)
            usable = np.asarray(pc.equal(self.arrow("status"), "ok"))
            times_s = (self.arrow(edge).to_numpy() for edge in ("start_s", "end_s"))
            self._companions = Companions((self.uris(), sources), usable, *times_s)
        number = self._companions.find(row.clip_id, name)
        if number is None or self.cell(number, COMPANION):
            wanted = os.path.normpath(os.path.join(os.path.dirname(row.uri), name))
            raise UserError(f"{self.path}: {row.uri} names the companion {name}, and no usable row of it is {wanted}")
        return self.row(number)

    def keyframes(self, i: int) -> np.ndarray:
        """Read the times of the keyframes of row number `i` in seconds: float64 [n], ascending; none if not known."""
        batch, place = self._locate(i)
        times = batch.keyframes_s[place]
        return times.values.to_numpy() if times.is_valid else np.empty(0)

    def _locate(self, i: int) -> tuple[_Batch, int]:
        """Find the batch of row number `i`, and its place there."""
        number = bisect_right(self._first_rows, i) - 1
        return self._batches.get(number) or self._open_batch(number), i - self._first_rows[number]

    def _open_batch(self, number: int) -> _Batch:
        batch = self._file.get_batch(number)
        numbers = np.frombuffer(batch.column(PACKED_COLUMN).buffers()[1], PACKED, count=batch.num_rows)
        columns = (batch.column(name) for name in _Batch._fields[1:])
        opened = self._batches[number] = _Batch(numbers, *columns)
        return opened

    def records(self, names: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Read every row as column -> value, as `write_index` takes it; the columns `names`, or all."""
        for number in range(self._file.num_record_batches):
            yield from self._file.get_batch(number).select(names or self.names).to_pylist()

    def cell(self, i: int, name: str) -> Any:
        """Read one column of row number `i`."""
        number = bisect_right(self._first_rows, i) - 1
        return self._file.get_batch(number).column(name)[i - self._first_rows[number]].as_py()

    def find(self, name: str, values: Sequence[str]) -> list[int]:
        """List the rows, whatever their status, whose column `name` is one of `values` as text."""
        wanted = pc.is_in(self._text(name), value_set=pa.array(values, pa.string()))
        rows: list[int] = np.flatnonzero(np.asarray(wanted)).tolist()
        return rows

    def column(self, name: str) -> list[str | None]:
        """Read one value per row, as text; None where there is none. Raises UserError for an unknown column."""
        values: list[str | None] = self._text(name).to_pylist()
        return values

    def select(self, where: Mapping[str, str | list[str]]) -> np.ndarray:
        """List the usable rows (status ok) whose columns have the wanted values: int64 [n], n >= 1.

        Values are compared as text. Raises UserError for an unknown column, or where no row matches.
        """
        keep = pc.equal(self._text("status"), "ok")
        for name, wanted in where.items():
            values = wanted if isinstance(wanted, list) else [wanted]
            keep = pc.and_(keep, pc.is_in(self._text(name), value_set=pa.array(values, pa.string())))
        rows = np.flatnonzero(np.asarray(keep)).astype(np.int64)
        if not len(rows):
            wish = ", ".join(f"{name}={value}" for name, value in where.items()) or "any clip"
            raise UserError(f"{self.path}: none of its {len(self)} rows is usable (status ok) and matches {wish}")
        return rows

    def arrow(self, name: str) -> Any:
        """Read one value per row in the type of the column, lists included: a ChunkedArray of views of the mapped file.

        Raises UserError for an unknown column.
        """
        if name not in self.names:
            raise UserError(f"{self.path}: no column {name!r}; it has {', '.join(self.names)}")
        chunks = [self._file.get_batch(number).column(name) for number in range(self._file.num_record_batches)]
        return pa.chunked_array(chunks, self._file.schema.field(name).type)

    def _text(self, name: str) -> Any:
        lists = {field.name for field in SCHEMA if pa.types.is_list(field.type)}
        texts = [column for column in self.names if column not in lists]
        if name not in texts:
            raise UserError(f"{self.path}: no column {name!r}; it has {', '.join(texts)}")
        return pc.cast(self.arrow(name), pa.string())


def _folder_of(path: Path) -> str:
    """Find the folder that relative paths in an index begin at: that of the file, or of the link to it where they lie
    there.
    """
    if path.is_symlink() and not _lies_beside(path):
        return str(path.resolve().parent)
    return str(path.parent)


def _lies_beside(path: Path) -> bool:
    """Tell whether the first file with a relative path is there, from the folder of `path` on."""
    for batch in pq.ParquetFile(path).iter_batches(batch_size=1024, columns=["uri"]):
        for uri in batch.column(0).to_pylist():
            if uri and "://" not in uri and not os.path.isabs(uri):
                return os.path.lexists(os.path.join(path.parent, uri))
    return True


def resolve(uri: str, folder: str) -> str:
    """Make the `uri` of a row of an index in `folder` an absolute path, or keep the address that it is."""
    return uri if "://" in uri else os.path.join(folder, uri)


def index_version(path: Path) -> int | None:
    """Read the schema version of a clip index; None where the file is none."""
    version = index_metadata(path).get(_VERSION_KEY, b"")
    return int(version) if version.isdigit() else None


def index_metadata(path: Path) -> dict[bytes, bytes]:
    """Read what `write_index` noted about the index as a whole; empty where the file is no Parquet."""
    try:
        return pq.read_schema(path, memory_map=True).metadata or {}
    except (pa.ArrowException, OSError):
        return {}


def write_index(
    path: str | Path,
    rows: Iterable[Mapping[str, Any]],
    extra: Sequence[str] | None = None,
    metadata: Mapping[bytes, bytes] | None = None,
    tracks: Tracks | None = None,
) -> None:
    """Write rows (column -> value) all at once or not at all.

    extra: names of text columns beside those of the schema. Where it is given, `rows` are never all in memory;
        None: every name outside of the schema that a row has, sorted.
    metadata: kept beside the version, for `index_metadata`.
    tracks: what the columns `action` and `state` hold; mean and deviation are measured on the usable rows.
    """
    path = Path(path)
    if extra is None:
        rows = list(rows)
        extra = sorted({name for row in rows for name in row} - set(SCHEMA.names))
    schema = pa.schema(
        [*SCHEMA, *((name, pa.string()) for name in extra)],
        metadata={**(metadata or {}), _VERSION_KEY: str(SCHEMA_VERSION).encode()},
    )
    measuring = _Measuring(tracks or Tracks())
    with whole_file(path) as partial, pq.ParquetWriter(partial, schema) as writer:
        for group in _groups(rows):
            table = pa.Table.from_pylist(group, schema)
            measuring.add(table)
            writer.write_table(table)
        writer.add_key_value_metadata({TRACKS_KEY: measuring.tracks.to_json()})


class _Measuring:
    """Measure the tracks of the usable rows of an index that is being written."""

    def __init__(self, tracks: Tracks) -> None:
        self._infos: dict[str, TrackInfo] = {name: info for name, info in vars(tracks).items() if info}
        self._moments = {name: Moments(info.size) for name, info in self._infos.items()}

    def add(self, table: pa.Table) -> None:
        usable = table.filter(pc.equal(table["status"], "ok"))
        for name, moments in self._moments.items():
            values = pc.list_flatten(usable[name]).to_numpy()
            moments.add(values.reshape(-1, self._infos[name].size))

    @property
    def tracks(self) -> Tracks:
        return Tracks(**{name: info.measured(self._moments[name]) for name, info in self._infos.items()})


def _groups(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    group: list[Mapping[str, Any]] = []
    tracked = 0
    for row in rows:
        group.append(row)
        tracked += sum(len(values) for name in ("action", "state") if (values := row.get(name)) is not None)
        if len(group) == _ROWS_PER_GROUP or tracked >= _TRACKED_PER_GROUP:
            yield group
            group, tracked = [], 0
    if group:
        yield group
