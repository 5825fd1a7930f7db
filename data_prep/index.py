"""Make a clip index of a folder: `python -m data_prep.index FOLDER --labels labels.csv --out x.parquet`.

Every video and image is decoded once, in processes that can be killed. A file that cannot be used stays in the
index with the reason in its `status`.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from data_prep.scan import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from data_prep.scan_pool import ScanPool
from vjepa.command import progress_bar, run
from vjepa.data.clip_index import SCHEMA, ClipIndex, index_version, write_index
from vjepa.errors import UserError

_MEDIA: Final = VIDEO_EXTENSIONS | IMAGE_EXTENSIONS
_LABEL_COLUMNS: Final = ("label", "split", "group")
_NUM_NAMED: Final = 3


def build_index(folder: str | Path, out: str | Path, labels: str | Path | None = None, workers: int | None = None, progress: bool = True) -> ClipIndex:
    """Scan every video and image under `folder` and write the clip index `out`.

    `labels`: CSV whose first column is a path relative to `folder`; label, split, group and any other column are kept.
    Raises UserError for a missing folder, no usable file, labels that match no file, an `out` that is no clip index.
    """
    folder, out = Path(os.path.abspath(folder)), Path(os.path.abspath(out))
    _check_out(out)
    paths, num_ignored = _media_files(folder)
    table = _read_labels(Path(labels), folder) if labels else {}
    names = [path.relative_to(folder).as_posix() for path in paths]
    notes = _compare(names, table, Path(labels)) if labels else []
    if num_ignored:
        notes.append(f"{folder}: files of other extensions, ignored: {num_ignored}")
    scans = ScanPool(workers or os.cpu_count() or 1).scan(_entry(path) for path in paths)
    shown = progress_bar(scans, shown=progress, total=len(paths), unit="file", desc="index")
    rows = [clip | table.get(name, {}) | {"uri": _uri(path, out)} for path, name, clips in zip(paths, names, shown, strict=True) for clip in clips]
    unusable = Counter(row["status"] for row in rows if row["status"] != "ok")
    if sum(unusable.values()) == len(rows):
        raise UserError(f"{folder}: none of its {len(rows)} files can be decoded: {_counts(unusable)}; give a folder with videos or images")
    _number_labels(rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_index(out, rows)
    if progress:
        notes.append(
            f"{len(rows)} files: {len(rows) - sum(unusable.values())} ok, {sum(unusable.values())} not usable" + (f": {_counts(unusable)}" if unusable else "")
        )
        print("\n".join(notes))
    return ClipIndex.open(out)


def _check_out(out: Path) -> None:
    """Before the scan, because a scan may take hours."""
    if out.is_dir() or (out.exists() and index_version(out) is None):
        raise UserError(f"{out}: exists and is not a clip index, so it is not replaced; choose another --out")
    parent = next(place for place in out.parents if place.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"{out}: {parent} cannot be written to; choose another --out")


def _media_files(folder: Path) -> tuple[list[Path], int]:
    """Videos and images by extension, sorted; and how many other files there are. Hidden ones and labels.csv do not count."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder that holds the videos")
    files = [path for path in _files(folder) if path.name != "labels.csv"]
    media = sorted(path for path in files if path.suffix.lower() in _MEDIA)
    if not media:
        raise UserError(f"{folder}: holds no video or image; known extensions: {' '.join(sorted(_MEDIA))}")
    return media, len(files) - len(media)


def _files(folder: Path) -> Iterator[Path]:
    """Files that are not hidden, in any depth. Links to folders are followed, each folder once."""
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        true_place = os.path.realpath(place)
        folders[:] = [name for name in folders if not name.startswith(".") and true_place not in seen]
        if true_place not in seen:
            yield from (Path(place, name) for name in names if not name.startswith("."))
        seen.add(true_place)


def _read_labels(path: Path, folder: Path) -> dict[str, dict[str, str | None]]:
    """Rows of the CSV by file name. An empty cell is no value."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *lines = [line for line in csv.reader(file) if line] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV: {error}") from None
    if not header or not lines:
        raise UserError(f"{path}: needs a header (file, label, split, group, ...) and one line for each file")
    clash = [name for name in header[1:] if name in SCHEMA.names and name not in _LABEL_COLUMNS]
    if clash or len(set(header[1:])) < len(header) - 1 or not all(header):
        raise UserError(f"{path}: column names must be unique, not empty, and none that the index has itself ({', '.join(clash or SCHEMA.names)})")
    table: dict[str, dict[str, str | None]] = {}
    for number, line in enumerate(lines, start=2):
        if len(line) != len(header):
            raise UserError(f"{path}: line {number} has {len(line)} cells, the header has {len(header)}")
        name = Path(os.path.normpath(folder / line[0]))
        key = name.relative_to(folder).as_posix() if name.is_relative_to(folder) else line[0]
        if key in table:
            raise UserError(f"{path}: line {number} names {line[0]} a second time")
        table[key] = {column: cell or None for column, cell in zip(header[1:], line[1:], strict=True)}
    return table


def _compare(names: Sequence[str], table: dict[str, Any], labels: Path) -> list[str]:
    """What the labels lack and what the folder lacks, in one line each. Raises UserError where they share no file."""
    missing, unlabelled = sorted(set(table) - set(names)), sorted(set(names) - set(table))
    if len(missing) == len(table):
        raise UserError(f"{labels}: none of its files is in the folder: {_first(missing)}; its first column holds paths relative to the folder")
    notes = []
    if missing:
        notes.append(f"{labels}: rows without a file in the folder: {len(missing)} ({_first(missing)})")
    if unlabelled:
        notes.append(f"{labels}: files without a row: {len(unlabelled)} ({_first(unlabelled)})")
    return notes


def _number_labels(rows: list[dict[str, Any]]) -> None:
    labels = sorted({row["label"] for row in rows if row.get("label")})
    ids = {label: i for i, label in enumerate(labels)}
    for row in rows:
        row["label_id"] = ids.get(row.get("label"), -1)


def _entry(path: Path) -> Any:
    return SimpleNamespace(uri=str(path), name=path.name, offset=None, length=None, start_s=None, end_s=None)


def _uri(path: Path, out: Path) -> str:
    return path.relative_to(out.parent).as_posix() if path.is_relative_to(out.parent) else str(path)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_NUM_NAMED]) + (", ..." if len(names) > _NUM_NAMED else "")


def _counts(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} x{count}" for reason, count in reasons.most_common())


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_prep.index", description="Make a clip index of a folder of videos and images.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help=f"searched with all of its folders for {' '.join(sorted(_MEDIA))}")
    parser.add_argument("--labels", type=Path, metavar="labels.csv", help="first column: file relative to FOLDER; then label, split, group, any other")
    parser.add_argument("--out", type=Path, required=True, metavar="x.parquet", help="the clip index to write")
    parser.add_argument("--workers", type=int, metavar="N", help="files scanned at a time (default: the number of cores)")
    given = parser.parse_args(arguments)
    if given.workers is not None and given.workers < 1:
        raise UserError(f"--workers {given.workers}: at least 1 is needed")
    build_index(given.folder, given.out, given.labels, given.workers)
    return 0


if __name__ == "__main__":
    run(main)
