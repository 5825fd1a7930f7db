"""Files and folders that appear whole: readers see the old one or the new one, never a part."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write to, beside `path` and with its ending; what is there at the end is synced and renamed.

    The folder of `path` is made. An error inside the block removes what was written and leaves `path` as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a new, empty folder beside `path` to fill; at the end it takes the place of `path`.

    An error inside the block removes what was written and leaves `path` as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    partial.mkdir()
    replaced = partial.with_name(f"{partial.name}.replaced")
    try:
        yield partial
        if path.exists():
            os.replace(path, replaced)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Take a folder from its readers at once; what somebody still reads of it over a network, or through FUSE, stays
    beside it as `.partial-*`, for the next process that clears these.
    """
    gone = _partial(path)
    os.replace(path, gone)
    shutil.rmtree(gone, ignore_errors=True)


def remove_partials(folder: Path, name: str = "*") -> None:
    """Remove the files that killed writers of `name`, a pattern, left in a folder in which nobody writes now."""
    for partial in folder.glob(f".partial-*-{name}"):
        if partial.is_file():
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8, whole."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def sync(path: Path) -> None:
    """Wait until the disk has the bytes of a file: a rename may outlive what it names."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def cache_folder() -> Path:
    """Name the folder of what can be made again: $XDG_CACHE_HOME/vjepa, else ~/.cache/vjepa; who has no home has one
    among temporary files.
    """
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given, "vjepa")
    try:
        return Path.home() / ".cache" / "vjepa"
    except RuntimeError:  # no $HOME, and the user has no name
        return Path(tempfile.gettempdir(), f"vjepa-{os.getuid()}")


def _partial(path: Path) -> Path:
    """Name what is written, like nothing that another process writes: their numbers repeat from machine to machine."""
    return path.with_name(f".partial-{secrets.token_hex(4)}-{path.name}")


def sha256(path: Path) -> str:
    """Hash what a file holds; of a file that cannot be read it is empty."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
