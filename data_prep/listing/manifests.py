"""Lists of videos that users have: V-JEPA's `path label` files, CSV with a header, JSONL, Parquet; and of labels."""

from __future__ import annotations

import csv
import json
import math
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.listing.entry import MEDIA_EXTENSIONS
from data_prep.listing.places import composed, is_address, open_bytes, open_text, reaching, shown
from vjepa.data.clip_index import SCHEMA
from vjepa.errors import UserError

TEXT_COLUMNS: Final = ("label", "split", "group")
RESERVED: Final = frozenset(SCHEMA.names) - set(TEXT_COLUMNS)  # what the index measures itself

_FILE_KEYS: Final = ("path", "file", "file_name", "filename", "uri", "video")
_NUMBERS: Final = ("offset", "length", "start_s", "end_s")
_EXTENSIONS: Final = sorted(MEDIA_EXTENSIONS)
_EXTENSION: Final = "|".join(map(re.escape, _EXTENSIONS))
_MEDIA_NAME: Final = re.compile(rf".*({_EXTENSION})", re.IGNORECASE | re.DOTALL)
_MEDIA_CELL: Final = re.compile(rf"({_EXTENSION})[\"']?(\s|,|::|$)", re.IGNORECASE)
_MEDIA_BEFORE_COMMA: Final = re.compile(rf"({_EXTENSION})[\"']?\s*,", re.IGNORECASE)
_REMEDY: Final = (
    'write "path label" in each line, or a comma-separated CSV whose first line names the columns (file,label,...)'
)


@dataclass(frozen=True)
class Row:
    """Hold one line of a manifest. path: as written; where: the line, for messages."""

    path: str
    where: str
    offset: int | None = None
    length: int | None = None
    start_s: float | None = None
    end_s: float | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)


def read_manifest(place: str, ignored: set[str]) -> Iterator[Row]:
    """Yield the rows of `place`, in its order.

    ignored: receives the names of columns that the index measures itself or that hold no text. Raises UserError for a
    file that cannot be read, or not for sure: nothing is guessed where a path may have commas and spaces.
    """
    if place.lower().endswith(".parquet"):
        records = _parquet(place, ignored)
    elif place.lower().endswith(".jsonl"):
        records = _json_lines(place)
    else:
        records = _text_lines(place)
    for where, path, cells in records:
        yield _row(place, where, path, cells, ignored)


def text_columns(cells: Mapping[str, Any], ignored: set[str]) -> dict[str, str | None]:
    """Turn values into text, None where there is none.

    ignored: receives the names of columns that the index measures itself, which are left out.
    """
    ignored |= {name for name in cells if name in RESERVED or not name}
    return {name: _as_text(value) for name, value in cells.items() if name not in RESERVED and name}


def read_labels(place: str) -> dict[str, dict[str, str | None]]:
    """Read a CSV of labels: rows by what their first column says, without detours such as ./ in it.

    An empty cell is no value.
    """
    with open_text(place) as text:
        lines = _csv_lines(place, text)
        _, header = next(lines, (0, []))
        header = [name.strip() for name in header]
        _check_header(place, header)
        table: dict[str, dict[str, str | None]] = {}
        for number, cells in lines:
            if len(cells) != len(header):
                raise UserError(f"{shown(place)}: line {number} has {len(cells)} cells, the header has {len(header)}")
            key = composed(plain_path(cells[0]))
            if key in table:
                raise UserError(
                    f"{shown(place)}: line {number} names {shown(cells[0])} a second time; --labels has one line for "
                    f"each file; for parts of files give the table as the source: data_prep.index {shown(place)}"
                )
            table[key] = {column: cell.strip() or None for column, cell in zip(header[1:], cells[1:], strict=True)}
    if not table:
        raise UserError(f"{shown(place)}: needs a header (file, label, split, group, ...) and one line for each file")
    return table


def plain_path(path: str) -> str:
    return path if is_address(path) else posixpath.normpath(path)


def _check_header(place: str, header: list[str]) -> None:
    if not header:
        raise UserError(f"{shown(place)}: needs a header (file, label, split, group, ...) and one line for each file")
    if not all(header):
        raise UserError(
            f"{shown(place)}: column {header.index('') + 1} of its first line has no name; write one, or leave it "
            "out (pandas: index=False)"
        )
    clash = [name for name in header[1:] if name in RESERVED]
    if clash or len(set(header[1:])) < len(header) - 1:
        wrong = ", ".join(clash or sorted(RESERVED))
        raise UserError(f"{shown(place)}: column names must be unique, and none that the index has itself ({wrong})")


def _text_lines(place: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Tell by the first line which of the two kinds of text it is, and read it.

    It names a file of a known kind, or it is a header that names none.
    """
    with open_text(place) as text, reaching(place):
        line = next((line for line in text if line.strip()), "")
    if _path_and_label(line):
        return _path_label_lines(place)
    _, header = next(_csv_lines(place, [line]), (0, []))
    if not _MEDIA_CELL.search(line) and (len(header) > 1 or _file_key(header)):
        return _table_lines(place)
    if not line:
        return iter(())
    raise UserError(
        f"{shown(place)}: cannot tell what its first line is, {_excerpt(line)}; {_REMEDY}; known extensions: "
        f"{' '.join(_EXTENSIONS)}"
    )


def _path_label_lines(place: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield paths with their labels; either every line has a label, or none has one.

    A label is the last word: after a space, or after :: as V-JEPA 2 has it.
    """
    labelled = None
    with open_text(place) as text:
        for number, line in _numbered(place, text):
            parts = _path_and_label(line)
            if parts is None:
                raise UserError(f"{shown(place)}: line {number} is not a path and a label, {_excerpt(line)}; {_REMEDY}")
            labelled = parts[1] is not None if labelled is None else labelled
            if labelled != (parts[1] is not None):
                raise UserError(
                    f"{shown(place)}: line {number} has {'no' if labelled else 'a'} label, unlike the lines "
                    f"before, {_excerpt(line)}; {_REMEDY}"
                )
            yield f"line {number}", parts[0], {"label": parts[1]}


def _path_and_label(line: str) -> tuple[str, str | None] | None:
    """Split a line; None where it is not surely a path of a known kind, with a label or without."""
    line = line.strip()
    if line.startswith('"'):
        quoted = re.fullmatch(r'"((?:[^"]|"")*)"(?:\s+(\S+))?', line)
        return (quoted[1].replace('""', '"'), quoted[2]) if quoted and _MEDIA_NAME.fullmatch(quoted[1]) else None
    if _MEDIA_BEFORE_COMMA.search(line):
        return None  # more like the cells of a table than like a path
    if _MEDIA_NAME.fullmatch(line):
        return line, None
    path, _, label = line.rpartition("::")
    if not _MEDIA_NAME.fullmatch(path) or len(label.split()) != 1:
        path, label = line.rsplit(None, 1) if len(line.split(None, 1)) == 2 else ("", "")
    return (path, label) if _MEDIA_NAME.fullmatch(path) else None


def _table_lines(place: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    with open_text(place) as text:
        lines = _csv_lines(place, text)
        header = [name.strip() for name in next(lines)[1]]
        if len(set(header)) < len(header):
            raise UserError(
                f"{shown(place)}: column names in its first line must be unique: {shown(', '.join(header))}"
            )
        key = _file_key(header)
        for number, cells in lines:
            if len(cells) != len(header):
                raise UserError(
                    f"{shown(place)}: line {number} has {len(cells)} cells, the header has {len(header)}; put "
                    "a path with commas in quotes"
                )
            record = dict(zip(header, cells, strict=True))
            if key is None:  # the first column, then, which only a file in it can show
                if not _MEDIA_NAME.fullmatch(cells[0]):
                    raise UserError(
                        f"{shown(place)}: no column is called {', '.join(_FILE_KEYS)}, and line {number} "
                        f"starts with no file, {_excerpt(cells[0])}"
                    )
                yield f"line {number}", record.pop(header[0]), record
            else:
                yield f"line {number}", record.pop(key), record


def _json_lines(place: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    with open_text(place) as text:
        for number, line in _numbered(place, text):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{shown(place)}: line {number} is not JSON: {shown(str(error))}") from None
            key = _file_key(record) if isinstance(record, dict) else None
            if key is None:
                raise UserError(
                    f"{shown(place)}: line {number} is no object that names a file; its key is one of "
                    f"{', '.join(_FILE_KEYS)}"
                )
            yield f"line {number}", record.pop(key), record


def _parquet(place: str, ignored: set[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    with open_bytes(place) as file:
        try:
            table = pq.ParquetFile(file)
            names = [
                column.name
                for column in table.schema_arrow
                if not pa.types.is_binary(column.type) and not pa.types.is_large_binary(column.type)
            ]
            ignored |= set(table.schema_arrow.names) - set(names)
            key = _file_key(names)
            if key is None:
                raise UserError(
                    f"{shown(place)}: no column names a file; call it one of {', '.join(_FILE_KEYS)}; it has "
                    f"{', '.join(names)}"
                )
            read = [name for name in names if name not in RESERVED or name in (key, *_NUMBERS)]
            ignored |= set(names) - set(read)
            number = 0
            for batch in table.iter_batches(columns=read):
                for record in batch.to_pylist():
                    number += 1
                    yield f"row {number}", record.pop(key), record
        except UserError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: names or text that are not UTF-8
            raise UserError(
                f"{shown(place)}: cannot be read as Parquet: {shown(' '.join(str(error).split()))}"
            ) from None


def _row(place: str, where: str, path: Any, cells: Mapping[str, Any], ignored: set[str]) -> Row:
    if not isinstance(path, str) or not path.strip() or "\0" in path:
        raise UserError(f"{shown(place)}: {where} names no file: {_excerpt(str(path))}")
    numbers = {name: _number(place, where, name, cells.get(name)) for name in _NUMBERS}
    if (numbers["offset"] is None) != (numbers["length"] is None):
        raise UserError(f"{shown(place)}: {where} has only one of offset and length; both are needed")
    start_s, end_s = numbers["start_s"], numbers["end_s"]
    if start_s is not None and end_s is not None and end_s <= start_s:
        raise UserError(f"{shown(place)}: {where}: end_s {end_s:g} is not after start_s {start_s:g}")
    offset, length = (None if numbers[name] is None else int(numbers[name] or 0) for name in ("offset", "length"))
    columns = text_columns({name: value for name, value in cells.items() if name not in _NUMBERS}, ignored)
    return Row(path, where, offset, length, start_s, end_s, columns)


def _number(place: str, where: str, name: str, value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise UserError(f"{shown(place)}: {where}: {name} {_excerpt(str(value))} is not a number from 0 up")
    return number


def _as_text(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    is_nested = isinstance(value, dict | list)
    return (json.dumps(value, ensure_ascii=False, default=str) if is_nested else str(value).strip()) or None


def _file_key(names: Iterable[str]) -> str | None:
    by_lower = {name.strip().lower(): name for name in names}
    return next((by_lower[key] for key in _FILE_KEYS if key in by_lower), None)


def _numbered(place: str, text: IO[str]) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not empty, with their numbers."""
    with reaching(place):
        for number, line in enumerate(text, start=1):
            if line.strip():
                yield number, line


def _csv_lines(place: str, text: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(text, skipinitialspace=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except (csv.Error, OSError) as error:
        raise UserError(f"{shown(place)}: cannot be read as CSV: line {reader.line_num}: {shown(str(error))}") from None


def _excerpt(text: str) -> str:
    text = shown(text.strip())
    return repr(text if len(text) <= 80 else text[:77] + "...") if "\\" not in text else f"'{text[:80]}'"
