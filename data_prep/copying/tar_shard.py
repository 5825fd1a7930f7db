"""One tar shard: files copied byte for byte, each with a JSON beside it; the same input gives the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from data_prep.listing.entry import MEDIA_EXTENSIONS
from data_prep.listing.places import file_system, is_address
from vjepa.data.media import is_zarr, plain
from vjepa.files import whole_file

CHANGED: Final = "changed since its scan"
_BLOCK_BYTES: Final = 1 << 22
_END: Final = bytes(2 * tarfile.BLOCKSIZE)
# First bytes of containers, for a file whose name is not known because it lies in a shard already.
_MAGIC: Final = {
    (4, b"ftyp"): ".mp4", (0, b"\x1aE\xdf\xa3"): ".mkv", (8, b"AVI "): ".avi", (0, b"G@"): ".ts",
    (0, b"\xff\xd8\xff"): ".jpg", (0, b"\x89PNG"): ".png",
}  # fmt: skip


@dataclass(frozen=True)
class Member:
    """Name a file that goes into a shard.

    key: name in the shard, without extension, of letters, digits and dashes. uri: absolute path or fsspec address.
    offset: where it starts in `uri`; None: it is the whole file. num_bytes, content_hash: what the scan found (None:
    not known). facts: what the JSON beside it says.
    """

    key: str
    uri: str
    offset: int | None
    num_bytes: int | None
    content_hash: str | None
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """Say where the bytes of a member lie in its shard."""

    offset: int
    length: int


class SourceError(Exception):
    """Report a file that cannot be copied. The message says why, in plain words."""


def write_shard(path: Path, members: Sequence[Member]) -> dict[str, Place | str]:
    """Write the shard, whole or not at all, unless it is there already.

    Gives by key where a member lies, or why it was left out. Raises OSError where the shard cannot be written.
    """
    places = read_places(path) if path.is_file() else {}
    if all(member.key in places for member in members):
        return dict(places)
    with whole_file(path) as partial, partial.open("w+b") as tar:
        found = {member.key: _append_whole(tar, member) for member in members}
        tar.write(_END)
    return found


def read_places(path: Path) -> dict[str, Place]:
    """Read where each file of a shard lies, by key; none where the file is no tar."""
    try:
        with tarfile.open(path, "r:") as tar:
            return {
                entry.name.partition(".")[0]: Place(entry.offset_data, entry.size)
                for entry in tar
                if not entry.name.endswith(".json")
            }
    except tarfile.TarError:
        return {}


def _append_whole(tar: BinaryIO, member: Member) -> Place | str:
    start = tar.tell()
    try:
        return _append(tar, member)
    except SourceError as error:
        tar.seek(start)
        tar.truncate()
        return str(error)


def _append(tar: BinaryIO, member: Member) -> Place:
    if member.num_bytes is None:
        raise SourceError("its size is not known")
    digest, place = hashlib.sha256(), None
    for block in _blocks(member, member.num_bytes):
        if place is None:
            tar.write(_header(member.key + _extension(member.uri, block), member.num_bytes))
            place = Place(tar.tell(), member.num_bytes)
        digest.update(block)
        tar.write(block)
    if place is None or member.content_hash not in (None, digest.hexdigest()):
        raise SourceError(CHANGED)
    tar.write(_padding(member.num_bytes))
    text = json.dumps(member.facts, sort_keys=True).encode()
    tar.write(_header(f"{member.key}.json", len(text)) + text + _padding(len(text)))
    return place


def _blocks(member: Member, num_bytes: int) -> Iterator[bytes]:
    """Yield exactly `num_bytes`.

    Raises SourceError where there are fewer, or more in a file that is meant as a whole.
    """
    if is_zarr(member.uri):
        raise SourceError("a Zarr store is a folder; data_prep.transcode makes a file of it")
    try:
        with _open(member.uri) as file:
            file.seek(member.offset or 0)
            while num_bytes and (block := file.read(min(num_bytes, _BLOCK_BYTES))):
                num_bytes -= len(block)
                yield block
            if num_bytes and member.offset is not None:
                raise SourceError("reaches beyond the end of its shard")
            if num_bytes or (member.offset is None and file.read(1)):
                raise SourceError(CHANGED)
    except SourceError:
        raise
    except Exception as error:  # noqa: BLE001 - of storage: errors of botocore, aiohttp, gcsfs share no base
        raise SourceError(plain(error)) from None


def _open(uri: str) -> Any:
    if not is_address(uri):
        return open(uri, "rb")
    files, path = file_system(uri)
    return files.open(path, "rb", block_size=_BLOCK_BYTES)


def _extension(uri: str, first: bytes) -> str:
    """Take the extension of the name where it is a known one, else by the first bytes."""
    extension = os.path.splitext(uri)[1].lower()
    if extension in MEDIA_EXTENSIONS:
        return extension
    return next((known for (place, magic), known in _MAGIC.items() if first[place:].startswith(magic)), ".bin")


def _header(name: str, num_bytes: int) -> bytes:
    """Make the header of a member, without time and owner; GNU format, because a file may be larger than 8 GiB."""
    entry = tarfile.TarInfo(name)
    entry.size = num_bytes
    return entry.tobuf(tarfile.GNU_FORMAT)


def _padding(num_bytes: int) -> bytes:
    return bytes(-num_bytes % tarfile.BLOCKSIZE)
