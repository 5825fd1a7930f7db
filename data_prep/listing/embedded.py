"""Videos and images that lie in a Parquet file themselves, as Hugging Face stores them: a column of {bytes, path}.

Where they are not compressed, which Hugging Face leaves out for such columns, their bytes are found and read in place.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.listing import places
from data_prep.listing.entry import Entry
from data_prep.listing.layouts import split_of
from data_prep.listing.manifests import text_columns
from data_prep.listing.places import shown
from vjepa.errors import UserError

_PLAIN: Final = "UNCOMPRESSED"


def list_embedded(place: str, name: str, notes: list[str]) -> list[Entry] | None:
    """List the files in a Parquet file with the other columns of their rows; None where no column is {bytes, path}.

    name: the place as names of its files open with it. Split: the column, else the name (train-00000-of-00004.parquet).
    Raises UserError where a file cannot be read in place.
    """
    with places.open_bytes(place) as file:
        try:
            table = pq.ParquetFile(file)
            column = _column(table.schema_arrow)
            return None if column is None else list(_entries(table, file, place, name, column, notes))
        except UserError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: names or text that are not UTF-8
            words = shown(" ".join(str(error).split()))
            raise UserError(f"{shown(place)}: cannot be read as Parquet: {words}") from None


def has_embedded(place: str) -> bool:
    """Tell whether files lie in a Parquet file; by its schema alone, and not where it cannot be read."""
    with places.open_bytes(place) as file:
        try:
            return _column(pq.read_schema(file)) is not None
        except (pa.ArrowException, OSError, ValueError):
            return False


def _column(schema: pa.Schema) -> str | None:
    return next((field.name for field in schema if _is_media(field.type)), None)


def _is_media(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind) or {"bytes", "path"} - {field.name for field in kind}:
        return False
    stored = kind.field("bytes").type
    return bool(pa.types.is_binary(stored) or pa.types.is_large_binary(stored))


def _entries(
    table: pq.ParquetFile, file: IO[bytes], place: str, name: str, column: str, notes: list[str]
) -> Iterator[Entry]:
    classes, ignored = _classes(table.schema_arrow), set[str]()
    split, number = split_of(posixpath.basename(name).split("-")[:1]), 0
    for group in range(table.num_row_groups):
        (begin, stored), end = _stored(table, file, place, group, column), 0
        for record in table.read_row_group(group).to_pylist():
            media, number = record.pop(column), number + 1
            cells = {key: _named(classes.get(key), value) for key, value in record.items() if not _is_bytes(value)}
            columns = {"split": split, **text_columns(cells, ignored)}
            if media is None or media["bytes"] is None:
                raise UserError(f"{shown(place)}: row {number} has no bytes in {column}; give the files that it names")
            content = media["bytes"]
            wanted = len(content).to_bytes(4, "little") + content
            at = max(stored.find(wanted, end), stored.find(wanted))  # behind the one before, or stored once for several
            if at < 0:
                raise UserError(f"{shown(place)}: row {number} of {column} is not stored in one piece; {_REMEDY}")
            end = at + len(wanted)
            path = media["path"] or f"{number - 1:06d}{_extension(content)}"
            yield Entry(place, f"{name}/{path}", begin + at + 4, len(content), columns=columns)
    if ignored:
        notes.append(
            f"{shown(place)}: columns that the index measures itself, ignored: {shown(', '.join(sorted(ignored)))}"
        )


def _stored(table: pq.ParquetFile, file: IO[bytes], place: str, group: int, column: str) -> tuple[int, bytes]:
    """Read how the bytes of a row group are stored, and where that begins."""
    facts = table.metadata.row_group(group)
    chunks = (facts.column(number) for number in range(facts.num_columns))
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema == f"{column}.bytes")
    if chunk.compression != _PLAIN:
        raise UserError(f"{shown(place)}: its {column} is compressed ({chunk.compression}); {_REMEDY}")
    begin = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)))
    file.seek(begin)
    return begin, file.read(chunk.total_compressed_size)


def _classes(schema: pa.Schema) -> Mapping[str, list[str]]:
    """Read the names of classes that Hugging Face notes: column -> names, by number."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature["names"] for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _named(names: list[str] | None, value: Any) -> Any:
    """Give the name of a class for its number."""
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value


def _is_bytes(value: Any) -> bool:
    return isinstance(value, bytes) or (isinstance(value, dict) and any(map(_is_bytes, value.values())))


def _extension(content: bytes) -> str:
    """Tell an image by its first bytes; anything else is opened as a video."""
    return next((extension for first, extension in _IMAGES.items() if content.startswith(first)), ".mp4")


_IMAGES: Final = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png"}
_REMEDY: Final = (
    "write the files to a folder, or store them as they are: pq.write_table(table, path, compression='none', "
    "use_dictionary=False)"
)
