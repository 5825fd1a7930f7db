"""Clips that no run reads again: a decoder hung or crashed on them, which the scan had not seen.

They are named in a file beside the index, one JSON object a line, which every later run reads. A clip leaves quarantine
when its file changes, for the content hash no longer fits, or when somebody deletes its line.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vjepa.data.clip_index import ClipIndex
from vjepa.errors import UserError

_IDENTITY = ("uri", "offset", "first_frame", "content_hash")


def quarantine_path(index_path: Path) -> Path:
    """Name the file: `x.parquet.quarantine.jsonl` for `x.parquet`."""
    return index_path.with_name(f"{index_path.name}.quarantine.jsonl")


def quarantined(index: ClipIndex) -> dict[int, str]:
    """Read which rows must not be read, and why. Raises UserError where a line of the file is damaged."""
    return {first + row: reason for first, part in index.parts for row, reason in _read(part).items()}


def _read(index: ClipIndex) -> dict[int, str]:
    path = quarantine_path(index.path)
    if not path.is_file():
        return {}
    reasons = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            entry = json.loads(line)
            reasons[entry["uri"], entry["offset"], entry["first_frame"], entry["content_hash"]] = str(entry["reason"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}: line {number} is not what a run wrote there; delete that line") from None
    found = {row: _identity(index, row) for row in index.find("uri", [str(uri) for uri, *_ in reasons])}
    return {row: f"in quarantine: {reasons[identity]}" for row, identity in found.items() if identity in reasons}


def put_in_quarantine(index: ClipIndex, row: int, reason: str) -> Path:
    """Add a row to the file, whose path is returned. Raises OSError where it cannot be written."""
    first, index = next(part for part in reversed(index.parts) if part[0] <= row)
    path, row = quarantine_path(index.path), row - first
    entry = dict(zip(_IDENTITY, _identity(index, row), strict=True)) | {
        "reason": reason,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")
    return path


def _identity(index: ClipIndex, row: int) -> tuple[Any, ...]:
    return tuple(index.cell(row, name) for name in _IDENTITY)
