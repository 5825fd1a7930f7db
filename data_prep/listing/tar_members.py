"""Videos and images in a tar shard by where their bytes lie; nothing is extracted or decoded."""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from data_prep.listing import places
from data_prep.listing.entry import MEDIA_EXTENSIONS, Entry
from data_prep.listing.manifests import text_columns
from data_prep.listing.places import first, shown

_COMPANIONS: Final = (".json", ".cls", ".txt")  # of a WebDataset sample: columns, label, and text that describes it
_COMPANION_BYTES: Final = 1 << 20


def list_members(shard: str, shard_name: str, notes: list[str]) -> list[Entry]:
    """List the videos and images of a shard, with what their WebDataset companions say; `notes` gets what is left out.

    shard_name: the place of the shard as names of its members open with it.
    """
    entries: dict[str, tuple[str, str, Entry]] = {}
    companions: dict[str, dict[str, str | None]] = {}
    left_out: dict[str, list[str]] = {}
    ignored: set[str] = set()
    with places.open_bytes(shard) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in _headers(tar):
                    name = posixpath.normpath(member.name)
                    key, extension = posixpath.splitext(name)
                    if reason := _unusable(member) or ("named a second time" if name in entries else None):
                        left_out.setdefault(reason, []).append(member.name)
                    elif member.isdir() or any(part.startswith(".") for part in name.split("/")):
                        continue
                    elif places.suffix(name) in MEDIA_EXTENSIONS:
                        entry = Entry(shard, f"{shard_name}/{name}", member.offset_data, member.size)
                        entries[name] = key, _sample(name), entry
                    elif extension.lower() not in _COMPANIONS:
                        left_out.setdefault("other extensions", []).append(member.name)
                    elif (columns := _companion(tar, member, extension.lower(), ignored)) is None:
                        left_out.setdefault("cannot be read as what they say of a video", []).append(member.name)
                    else:
                        companions.setdefault(key, {}).update(columns)
        except (tarfile.TarError, OSError, ValueError, EOFError) as error:
            notes.append(
                f"{shown(shard)}: not a whole tar file ({shown(str(error))}); members before the damage: {len(entries)}"
            )
    notes += [
        f"{shown(shard)}: members left out, {reason}: {len(names)} ({first(names)})"
        for reason, names in left_out.items()
    ]
    if ignored:
        notes.append(
            f"{shown(shard)}: columns that the index measures itself, ignored: {shown(', '.join(sorted(ignored)))}"
        )
    said = (companions.get(key) or companions.get(sample) or {} for key, sample, _ in entries.values())
    return [replace(entry, columns=columns) for (_, _, entry), columns in zip(entries.values(), said, strict=True)]


def _headers(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the header of each member. Raises ReadError for one that leads back to members before."""
    last = -1
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # else the headers of the whole shard stay in memory
        if member.offset <= last or member.size < 0:
            raise tarfile.ReadError(f"header of {shown(member.name)} points back")
        last = member.offset
        yield member


def _unusable(member: tarfile.TarInfo) -> str | None:
    """Say why a member is left out; None where it is not."""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "pointing outside of the shard"
    if not member.isreg() and not member.isdir():
        return "links and devices"
    return "stored with holes" if member.issparse() else None


def _sample(name: str) -> str:
    """Give the key of a sample as WebDataset does: the base name is cut at its first dot."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.partition(".")[0])


def _companion(
    tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str, ignored: set[str]
) -> dict[str, str | None] | None:
    """Read the columns that a companion adds; None where it cannot be read."""
    file = tar.extractfile(member) if member.size <= _COMPANION_BYTES else None
    if file is None:
        return None
    try:
        text = file.read().decode()
        name = "label" if extension == ".cls" else "text"
        cells: Any = json.loads(text) if extension == ".json" else {name: text.strip()}
    except (ValueError, RecursionError):
        return None
    return text_columns(cells, ignored) if isinstance(cells, dict) else None
