"""Pack the files of a clip index into tar shards.

Shards are readable as WebDataset ({key}.mp4, {key}.json). FOLDER/index.parquet is the clip index of the same clips: its
rows say where in which shard their file lies, so that any clip is one range read, from a disk or a bucket.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.child import Child
from data_prep.copying import output
from data_prep.copying.tar_shard import Member, Place, write_shard
from data_prep.engines import Engine
from data_prep.scanning.answers import counted
from vjepa.command import progress_bar
from vjepa.config.row_filter import Where
from vjepa.data.clip_index import SOURCE, ClipIndex, resolve, write_index
from vjepa.data.order import sample_row
from vjepa.errors import UserError

_MARKER: Final = ".shard.json"
_MB_BYTES: Final = 1_000_000
_OF_THE_PLACE: Final = ("uri", "offset", "length", "file_bytes", "modified_ns")  # columns that change when a file moves


@dataclass(frozen=True)
class ShardOptions:
    """Decide the bytes of the shards.

    max_mb: a shard is closed before it holds more MB of files; one larger file has a shard of its own.
    num_shards: this many, of equally many files whatever their size; None: by `max_mb`.
    shuffle_seed: the order of the files is drawn by it; None: that of the index.
    """

    max_mb: float = 1000.0
    num_shards: int | None = None
    shuffle_seed: int | None = None


@dataclass(frozen=True)
class _Files:
    """Hold the files of the chosen rows, in the order of the shards.

    File i has the rows `rows[first[i]:first[i + 1]]` of the table.
    """

    table: pa.Table
    rows: np.ndarray
    first: np.ndarray

    def __len__(self) -> int:
        return len(self.first) - 1

    def records(self, start: int, end: int) -> list[list[dict[str, Any]]]:
        """Take the rows, as column -> value, of each file from `start` to `end`."""
        first = self.first[start : end + 1]
        records = self.table.take(pa.array(self.rows[first[0] : first[-1]])).to_pylist()
        return [records[a:b] for a, b in zip((first - first[0])[:-1], (first - first[0])[1:], strict=True)]


def make_shards(
    index: str | Path | ClipIndex,
    out: str | Path,
    options: ShardOptions | None = None,
    where: Where | None = None,
    address: str | None = None,
    workers: int = 1,
    progress: bool = True,
    *,
    engine: str = "processes",
) -> ClipIndex:
    """Copy the file of every usable row of `index` that matches `where`, byte for byte, into tar shards in `out`.

    Files and shards that they lie in already may be local or behind an fsspec address. Several rows of one file share
    its one copy; companions come along. where: wanted values by column. address: where the shards will be found if they
    are moved (s3://bucket/folder); None: beside their index. workers: shards at a time. engine: see
    `data_prep.engines`. The same call goes on where it was; a file that is not what its scan saw is left out and
    counted, and tried again then. The index is held in memory, about 500 bytes a row. Raises UserError for settings out
    of range, an `out` that holds other things, no usable row, or where nothing could be copied.
    """
    index = index if isinstance(index, ClipIndex) else ClipIndex.open(index)
    options, where, out = options or ShardOptions(), where or {}, Path(os.path.abspath(out))
    rows, unusable = output.choose_rows(index, where)
    rows = np.union1d(rows, list(output.paired(index, rows))).astype(np.int64)
    files = _files(pq.ParquetFile(index.path).read(), rows, options.shuffle_seed)
    at = Engine(engine, workers)
    at.check()
    _check(options, address, len(files))
    bounds = _bounds(files, options)
    left: list[tuple[str, str]] = []  # uri and reason

    def rows_of(shards: Iterable[_Shard]) -> Iterator[dict[str, Any]]:
        for shard in shards:
            left.extend(shard.left)
            yield from shard.rows

    with output.claim_folder(out, _MARKER, output.index_facts(index, where) | asdict(options)):
        packing = at.work_off(_jobs(files, bounds), _Packing(out, str(index.path.parent), address))
        with closing(packing):
            shards = progress_bar(packing, shown=progress, total=len(bounds) - 1, unit="shard", desc="shard")
            records = rows_of(_in_order(shards))
            write_index(out / output.INDEX_NAME, records, output.extra_columns(index), tracks=index.tracks)
    if len(left) == len(files):
        (out / output.INDEX_NAME).unlink()
        reasons = counted(Counter(reason for _, reason in left))
        raise UserError(f"{index.path}: none of its {len(files)} files could be copied: {reasons}")
    if progress:
        copied = f"{out / output.INDEX_NAME}: {len(files) - len(left)} files in {len(bounds) - 1} shards"
        print(output.closing_lines(index, copied, "left out", sorted(left), unusable))
    return ClipIndex.open(out / output.INDEX_NAME)


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def _check(options: ShardOptions, address: str | None, num_files: int) -> None:
    if not 0 < options.max_mb < float("inf"):
        raise UserError(f"--max-mb {options.max_mb}: give a number above 0")
    if options.num_shards is not None and not 1 <= options.num_shards <= num_files:
        raise UserError(f"--num-shards {options.num_shards}: give a number from 1 to that of the files, {num_files}")
    if address and "://" not in address:
        raise UserError(
            f"--address {address}: give where the shards will be found, such as s3://bucket/folder; without "
            "it they stay beside their index"
        )


def _files(table: pa.Table, rows: np.ndarray, shuffle_seed: int | None) -> _Files:
    """Find the files of the rows, in the order of their first row, or shuffled.

    Rows of the same bytes are one file, wherever they are in the index.
    """
    chosen = table.select(["uri", "offset", "length"]).take(pa.array(rows))
    uris = chosen["uri"].cast(pa.large_string()).combine_chunks().dictionary_encode().indices
    key = np.stack([uris.to_numpy(), *(chosen[name].fill_null(-1).to_numpy() for name in ("offset", "length"))], axis=1)
    _, first, file_of_row = np.unique(key, axis=0, return_index=True, return_inverse=True)
    by_first_row = np.argsort(first)
    num = len(first)
    order = (
        by_first_row if shuffle_seed is None else by_first_row[[sample_row(shuffle_seed, i, num) for i in range(num)]]
    )
    place = np.empty(num, np.int64)
    place[order] = np.arange(num)
    place_of_row = place[file_of_row.reshape(-1)]
    sorted_rows = np.argsort(place_of_row, kind="stable")
    return _Files(table, rows[sorted_rows], np.searchsorted(place_of_row[sorted_rows], np.arange(num + 1)))


def _bounds(files: _Files, options: ShardOptions) -> list[int]:
    """Choose the number of the first file of each shard; the number of files comes last."""
    num = len(files)
    if options.num_shards:
        return [i * num // options.num_shards for i in range(options.num_shards + 1)]
    of_file = files.table.select(["length", "file_bytes"]).take(pa.array(files.rows[files.first[:-1]]))
    sizes = pc.coalesce(of_file["length"], of_file["file_bytes"], 0).to_numpy().tolist()
    bounds, filled = [0], 0
    for i, num_bytes in enumerate(sizes):
        if filled and filled + num_bytes > options.max_mb * _MB_BYTES:
            bounds.append(i)
            filled = 0
        filled += num_bytes
    return [*bounds, num]


class _Job(NamedTuple):
    """Ask for a shard. start: number of its first file. files: the rows of each, as column -> value."""

    number: int
    start: int
    files: list[list[dict[str, Any]]]


class _Shard(NamedTuple):
    """Tell what became of it: its rows of the new index, and (uri, reason) of what was left out."""

    number: int
    rows: list[dict[str, Any]]
    left: list[tuple[str, str]]


def _jobs(files: _Files, bounds: Sequence[int]) -> Iterator[_Job]:
    for number, (start, end) in enumerate(pairwise(bounds)):
        yield _Job(number, start, files.records(start, end))


def _in_order(shards: Iterable[_Shard]) -> Iterator[_Shard]:
    """Yield shards by their number; those that end earlier wait."""
    waiting: dict[int, _Shard] = {}
    wanted = 0
    for shard in shards:
        waiting[shard.number] = shard
        while wanted in waiting:
            yield waiting.pop(wanted)
            wanted += 1


@dataclass(frozen=True)
class _Packing:
    """Write shards to the folder `out`. folder: of the index that names the files."""

    out: Path
    folder: str
    address: str | None

    def new_child(self) -> Child:
        return Child()  # it is never asked: nothing is decoded

    def do(self, child: Child, task: _Job) -> Iterator[_Shard]:
        path = self.out / shard_name(task.number)
        members = [_member(i, rows, self.folder) for i, rows in enumerate(task.files, task.start)]
        try:
            places = write_shard(path, members)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error}); the same command goes on from there") from None
        uri = f"{self.address.rstrip('/')}/{path.name}" if self.address else path.name
        of_shard = {"uri": uri, "file_bytes": path.stat().st_size, "modified_ns": None}
        found = _Shard(task.number, [], [])
        for member, rows in zip(members, task.files, strict=True):
            place = places[member.key]
            if isinstance(place, Place):
                found.rows.extend(row | of_shard | asdict(place) | _origin(row, self.folder) for row in rows)
            else:
                found.left.append((member.uri, place))
        yield found

    def lost(self, task: _Job, reason: str) -> Iterator[_Shard]:
        path = self.out / shard_name(task.number)
        raise UserError(f"{path}: the machine that wrote it was lost ({reason}); the same command goes on from there")


def _origin(record: dict[str, Any], folder: str) -> dict[str, Any]:
    """Say where the file came from, and the first one like it.

    Both are absolute, for the shards have another folder, and `uri` names a shard.
    """
    first = record["duplicate_of"]
    return {
        SOURCE: record.get(SOURCE) or resolve(record["uri"], folder),
        "duplicate_of": first and resolve(first, folder),
    }


def _member(number: int, group: list[dict[str, Any]], folder: str) -> Member:
    """Describe the file of a group of rows.

    Its JSON has the columns on which they agree, and `clips` has the others of each row; tracks are in the index alone.
    """
    record, uri = group[0], resolve(group[0]["uri"], folder)
    told = [
        {
            name: value
            for name, value in (row | _origin(row, folder)).items()
            if name not in (*_OF_THE_PLACE, *output.TRACKS)
        }
        for row in group
    ]
    shared = {name: value for name, value in told[0].items() if all(row[name] == value for row in told)}
    clips = [{name: value for name, value in row.items() if name not in shared} for row in told]
    num_bytes = record["file_bytes"] if record["length"] is None else record["length"]
    return Member(
        f"{number:09d}",
        uri,
        record["offset"],
        num_bytes,
        record["content_hash"],
        shared | ({"clips": clips} if len(clips) > 1 else {}),
    )
