"""The copy of a clip index that is mapped into memory, in Arrow's file format.

Parquet has to be decoded to be read, which would cost every process the whole table. So this copy is kept beside it,
made at the first opening: processes share its pages, and a row costs microseconds.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vjepa.files import cache_folder, whole_file

FACTS_KEY: Final = b"vjepa_clip_index_source"  # JSON: of which Parquet file it is a copy, first rows of its batches

# The numbers of a row side by side, so that reading one touches one page and not one for each column.
# `times`: whether there are times_s.
PACKED: Final = np.dtype(
    [(name, "<i8") for name in ("offset", "length", "first_frame")]
    + [(name, "<f8") for name in ("start_s", "end_s", "fps", "sample_aspect")]
    + [(name, "<i4") for name in ("num_frames", "width", "height", "rotation", "channels", "bits")]
    + [("decoder", "S16"), ("keyframe_decoder", "S16"), ("axes", "S4"), ("times", "?")]
)
PACKED_COLUMN: Final = "packed row"
_MISSING: Final = {"decoder": "", "keyframe_decoder": "", "axes": "", "first_frame": 0, "channels": 3, "bits": 8}


def mappable_copy(path: Path) -> Path:
    """Find the copy of a Parquet index in Arrow's file format, or make it where there is none of this very file.

    It lies beside the index, or where that cannot be written to in the cache folder of the user, or among temporary
    files.
    """
    facts = path.stat()
    source = f"{facts.st_size} {facts.st_mtime_ns} {facts.st_ino}"
    beside = path.with_name(f".{path.name}.arrow")
    name = f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}.arrow"
    places = [beside, cache_folder() / name, Path(tempfile.gettempdir(), f"vjepa-{os.getuid()}", name)]
    for copy in places:
        if _source_of(copy) == source:
            return copy
    copy = next((copy for copy in places if _can_write(copy.parent, make=copy is not beside)), places[-1])
    _write_copy(path, copy, source)
    return copy


def _can_write(folder: Path, make: bool) -> bool:
    with suppress(OSError):
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        return os.access(folder, os.W_OK)
    return False


def _write_copy(path: Path, copy: Path, source: str) -> None:
    """Write the copy whole, so that processes which open the index at the same time may each do it."""
    file = pq.ParquetFile(path, memory_map=True)
    groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    facts = {"source": source, "first_rows": np.cumsum([0, *groups]).tolist()}
    packed = pa.field(PACKED_COLUMN, pa.binary(PACKED.itemsize))
    noted = file.metadata.metadata or {}
    about = {**{key: noted[key] for key in noted if key != b"ARROW:schema"}, FACTS_KEY: json.dumps(facts).encode()}
    schema = file.schema_arrow.append(packed).with_metadata(about)
    with whole_file(copy) as partial, partial.open("wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for number, num_rows in enumerate(groups):
            table = file.read_row_group(number).combine_chunks()
            packed_table = table.append_column(packed, _pack(table)).cast(schema)
            writer.write_table(packed_table, max_chunksize=max(1, num_rows))


def _pack(table: pa.Table) -> pa.Array:
    """Pack the numbers of each row as `PACKED`; `_MISSING` or -1 where there is none."""
    numbers = np.zeros(table.num_rows, PACKED)
    for name in PACKED.names or ():
        if name != "times":
            missing = _MISSING.get(name, -1)
            numbers[name] = table[name].fill_null(missing).to_numpy().astype(PACKED[name])
    numbers["times"] = table["times_s"].is_valid().to_numpy()
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(PACKED.itemsize), len(numbers), [None, pa.py_buffer(numbers)])


def _source_of(copy: Path) -> str | None:
    """Tell of which Parquet file `copy` is one; None where it is none, or not whole."""
    try:
        with pa.memory_map(str(copy)) as file:
            source: str = json.loads(pa.ipc.open_file(file).schema.metadata[FACTS_KEY])["source"]
            return source
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None


def mapped(path: Path) -> mmap.mmap:
    """Map a file into memory, to be read."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
