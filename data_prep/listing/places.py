"""Local paths and fsspec addresses (s3://bucket/videos) alike: which files a folder or a pattern has, and what they
say.

A place is an absolute local path or an address. Names of files in a place are relative to it, with "/".
"""

from __future__ import annotations

import codecs
import errno
import glob
import io
import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Final

from fsspec.core import url_to_fs
from fsspec.utils import glob_translate

from vjepa.data.media import ZARR, is_zarr
from vjepa.errors import UserError

_LOCAL_PROTOCOLS: Final = ("file", "local")
_NUM_NAMED: Final = 3
_BLOCK_BYTES: Final = 1 << 18  # of a remote file; reading the headers of a shard skips over whole videos
_DEEP: Final = "**"
_IN_STORE: Final = re.compile(rf"({re.escape(ZARR)})/.*")


@dataclass(frozen=True)
class Files:
    """List files that are not hidden, by name, sorted; `unreadable`: folders that could not be looked into."""

    root: str
    names: list[str]
    unreadable: list[str] = field(default_factory=list)


def is_address(place: str) -> bool:
    return "://" in place


def absolute(place: str) -> str:
    """Give an absolute path without a slash at its end, or the address that it is; file:///x is the path /x."""
    protocol, separator, path = place.partition("://")
    if separator and protocol not in _LOCAL_PROTOCOLS:
        return place
    return os.path.abspath(path if separator else place)


def join(folder: str, name: str) -> str:
    """Give the place of `name` as somebody in `folder` would write it: relative, absolute, or an address."""
    if is_address(name) or name.startswith("/") or not is_address(folder):
        return absolute(name if is_address(name) else os.path.join(folder, name))
    while name.startswith("../"):
        folder, name = parent(folder), name[3:]
    protocol, path, outer = _split(folder)
    return f"{protocol}://{path.rstrip('/')}/{name}{outer}" if path.rstrip("/") else f"{protocol}://{name}{outer}"


def parent(place: str) -> str:
    if not is_address(place):
        return os.path.dirname(place)
    protocol, path, outer = _split(place)
    return f"{protocol}://{posixpath.dirname(path.rstrip('/'))}{outer}"


def base_name(place: str) -> str:
    return posixpath.basename((_split(place)[1] if is_address(place) else place).rstrip("/"))


def suffix(place: str) -> str:
    """Give the extension in lower case, with its dot; what follows a ? in an address of the web is no part of it."""
    name = base_name(place)
    return os.path.splitext(name.partition("?")[0] if place.startswith("http") else name)[1].lower()


def has_pattern(place: str) -> bool:
    return any(letter in place for letter in ("*[" if place.startswith("http") else "*?["))


def shown(name: str) -> str:
    """Write a name as it can stand in a message of one line, whatever bytes it has."""
    return name if name.isprintable() else ascii(name)[1:-1]


def first(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:_NUM_NAMED])) + (", ..." if len(names) > _NUM_NAMED else "")


def composed(name: str) -> str:
    """Write a name with composed letters (Unicode's NFC): macOS stores accents apart, and lists have them joined."""
    return unicodedata.normalize("NFC", name)


def on_disk(place: str) -> str:
    """Give the path of a file that is there under this name, its accents joined or apart; else the name as it is."""
    forms = (place, composed(place), unicodedata.normalize("NFD", place))
    return place if is_address(place) else next(filter(os.path.lexists, forms), place)


@contextmanager
def reaching(place: str) -> Iterator[None]:
    """Turn what goes wrong with files inside of it into a UserError about `place`."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{shown(place)}: {error.strerror or error or type(error).__name__}") from None
    except ImportError as error:
        raise UserError(f"{shown(place)}: {error}; pip install 'video-jepa[remote]'") from None
    except (
        Exception
    ) as error:  # a service at the other end: every backend has errors of its own, with no class in common
        if not is_address(place):
            raise
        raise UserError(
            f"{shown(place)}: {' '.join(str(error).split()) or type(error).__name__}; check the address and "
            "your access to it"
        ) from None


@dataclass(frozen=True)
class FileFacts:
    """Hold size and change of a file, as the index keeps them; None where the storage does not tell."""

    file_bytes: int | None
    modified_ns: int | None


def file_facts(place: str) -> FileFacts:
    """Ask for the facts of a file, of a shard as a whole. Raises OSError, or what the storage raises."""
    if is_zarr(place):
        return _facts_of_store(place)
    if not is_address(place):
        facts = Path(place).stat()
        return FileFacts(facts.st_size, facts.st_mtime_ns)
    files, path = file_system(place)
    return _told(files.info(path))


def _facts_of_store(store: str) -> FileFacts:
    """Add the sizes of the files of a Zarr store; of their changes the last one counts."""
    found = [_told(info) for info in files_of_store(store).values()]
    sizes, changes = [facts.file_bytes for facts in found], [facts.modified_ns for facts in found]
    return FileFacts(sum(size or 0 for size in sizes), max(change or 0 for change in changes) or None)


def files_of_store(store: str) -> dict[str, dict[str, Any]]:
    """List the files of a Zarr store, here or elsewhere, with what its file system says of each.

    Raises OSError, or what the storage raises.
    """
    files, path = file_system(store)
    found: dict[str, dict[str, Any]] = files.find(path, detail=True)
    if not found:
        raise FileNotFoundError(errno.ENOENT, "no such store, or nothing is in it")
    return found


def _told(info: Mapping[str, Any]) -> FileFacts:
    """Take the facts out of what a file system of fsspec says."""
    keys = ("mtime", "LastModified", "last_modified", "updated", "created")
    changed = next((info[key] for key in keys if info.get(key)), None)
    if isinstance(changed, datetime):
        changed = changed.timestamp()
    return FileFacts(info.get("size"), int(changed * 1e9) if isinstance(changed, int | float) else None)


def bytes_at_hand(place: str, length: int | None) -> int:
    """Tell the size of a local file, or `length` where it is part of one; 0 for storage that may be slow to answer."""
    if length is not None or is_address(place):
        return length or 0
    try:
        return file_facts(place).file_bytes or 0
    except (OSError, ValueError):  # ValueError: a null byte in a name
        return 0


def exists(place: str) -> bool:
    if not is_address(place):
        return os.path.exists(place)
    with reaching(place):
        files, path = file_system(place)
        return bool(files.exists(path))


def open_bytes(place: str) -> IO[bytes]:
    """Open a place for reading. Raises UserError where it cannot be opened."""
    with reaching(place):
        if not is_address(place):
            return open(place, "rb")
        files, path = file_system(place)
        opened: IO[bytes] = files.open(path, "rb", block_size=_BLOCK_BYTES)
        return opened


@contextmanager
def open_text(place: str) -> Iterator[IO[str]]:
    """Open a place as UTF-8, or as UTF-16 where it opens with the mark of that (Excel); the mark is dropped.

    Other bytes, as paths may have, come through as Python has them in paths.
    """
    with open_bytes(place) as file:
        is_wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        file.seek(0)
        encoding, errors = ("utf-16", "replace") if is_wide else ("utf-8-sig", "surrogateescape")
        with io.TextIOWrapper(file, encoding=encoding, errors=errors, newline="") as text:
            yield text


def read_text(place: str) -> str:
    with open_text(place) as text, reaching(place):
        return text.read()


def folder_files(root: str) -> Files:
    """List the files of a folder in any depth. Links to folders are followed, each folder once.

    Raises UserError where it is no folder.
    """
    if is_address(root):
        return _remote_files(root)
    if not os.path.isdir(root):
        raise UserError(f"{shown(root)}: no such folder; give the folder that holds the videos")
    names, unreadable = _walk(root)
    if root in unreadable:
        raise UserError(f"{shown(root)}: the folder cannot be read; change its permissions or give another one")
    return Files(root, sorted(names), unreadable)


def matching_files(pattern: str) -> Files:
    """List the files that match `*`, `?`, `[ab]`, and `**` for any depth.

    The root is the last folder before the first of them.
    """
    return _remote_matches(pattern) if is_address(pattern) else _local_matches(pattern)


def _walk(root: str) -> tuple[list[str], list[str]]:
    """List names of files, and folders that cannot be read.

    A folder that a link leads to as well goes by its own name.
    """
    names: list[str] = []
    unreadable: list[str] = []
    seen: set[str] = set()
    waiting = [root]
    while waiting:
        for place, folders, files in os.walk(
            waiting.pop(0), onerror=lambda error: unreadable.append(str(error.filename))
        ):
            true_place = os.path.realpath(place)
            folders[:] = sorted(name for name in folders if not name.startswith(".")) if true_place not in seen else []
            if true_place not in seen:
                waiting += [path for path in (os.path.join(place, name) for name in folders) if os.path.islink(path)]
                inner = "" if place == root else os.path.relpath(place, root) + "/"
                names += [inner + name for name in (*files, *filter(is_zarr, folders)) if not name.startswith(".")]
                folders[:] = [name for name in folders if not is_zarr(name)]
            seen.add(true_place)
    return names, unreadable


def _local_matches(pattern: str) -> Files:
    parts = pattern.split("/")
    start = next(number for number, part in enumerate(parts) if has_pattern(part))
    root = "/".join(parts[:start]) or "/"
    if _DEEP not in parts:
        return Files(
            root,
            sorted(
                os.path.relpath(path, root) for path in glob.glob(pattern) if is_zarr(path) or not os.path.isdir(path)
            ),
        )
    # glob itself would follow links in circles
    deep = parts.index(_DEEP)
    wanted = _compiled("/".join(parts[deep:]), pattern)
    names: list[str] = []
    unreadable: list[str] = []
    for top in glob.glob("/".join(parts[:deep]) or "/"):
        below, closed = _walk(top) if os.path.isdir(top) else ([], [])
        names += [os.path.relpath(os.path.join(top, name), root) for name in below if wanted.match(name)]
        unreadable += closed
    return Files(root, sorted(names), unreadable)


def _compiled(tail: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(glob_translate(tail))
    except ValueError as error:
        raise UserError(f"{shown(pattern)}: {error}") from None


def _remote_files(root: str) -> Files:
    with reaching(root):
        files, path = file_system(root)
        names = _visible(files.find(path), path)
    if not names:
        raise UserError(
            f"{shown(root)}: no such folder, no file in it, or its server cannot be reached; give the folder "
            "that holds the videos"
        )
    return Files(root.rstrip("/") if _split(root)[1].strip("/") else root, names)


def _remote_matches(pattern: str) -> Files:
    protocol, path, outer = _split(pattern)
    parts = path.split("/")
    start = next(number for number, part in enumerate(parts) if has_pattern(part))
    root = f"{protocol}://{'/'.join(parts[:start])}{outer}"
    with reaching(pattern):
        files, inner = file_system(pattern)
        found = [
            name
            for name, facts in files.glob(inner, detail=True).items()
            if facts["type"] != "directory" or is_zarr(name)
        ]
        return Files(root, _visible(found, file_system(root)[1]))


def _visible(paths: Sequence[str], root: str) -> list[str]:
    """Name files from `root` on, those of a Zarr store by the store."""
    names = {re.sub(_IN_STORE, r"\1", path.removeprefix(root).lstrip("/")) for path in paths}
    return sorted(name for name in names if name and not any(part.startswith(".") for part in name.split("/")))


def file_system(place: str) -> tuple[Any, str]:
    """Give the fsspec file system of an address, and the path of the address in it."""
    files, path = url_to_fs(place)
    return files, path


def _split(address: str) -> tuple[str, str, str]:
    """Split an address into protocol, path, and what stands around it in a chain (zip://videos::s3://bucket/x.zip).

    The path is that of the first link that has one.
    """
    links = address.split("::")
    place = next(number for number, link in enumerate(links) if "://" in link)
    protocol, _, path = links[place].partition("://")
    return "::".join([*links[:place], protocol]), path, "".join(f"::{link}" for link in links[place + 1 :])
