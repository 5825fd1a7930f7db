"""Which clips are answered: rows of a clip index, or videos, images and folders that are scanned first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.listing.sources import list_entries
from data_prep.scanning.build import build_index
from vjepa.data.clip_index import ClipIndex, index_version
from vjepa.errors import UserError


@dataclass(frozen=True)
class Videos:
    """Hold the clips that can be read, rows int64 [n] of an index, and why others cannot: address -> reason."""

    index: ClipIndex
    rows: np.ndarray
    unreadable: dict[str, str]


def find_videos(names: list[str], folder: Path, progress: bool) -> Videos:
    """Open an index, or scan what is named, in processes that can be killed, into an index in `folder`.

    Raises UserError where nothing of it can be used.
    """
    if len(names) == 1 and names[0].endswith(".parquet") and index_version(Path(names[0])) is not None:
        return _usable(ClipIndex.open(names[0]), {})
    unlisted: dict[str, str] = {}
    for name in dict.fromkeys(names):
        try:
            list_entries([name])
        except UserError as error:
            unlisted[name] = str(error).removeprefix(f"{Path(name).absolute()}: ")
    known = [name for name in dict.fromkeys(names) if name not in unlisted]
    if not known:
        raise UserError("; ".join(f"{name}: {reason}" for name, reason in unlisted.items()))
    if progress:
        print(f"scanning {len(known)} source{'s' if len(known) > 1 else ''}", flush=True)
    return _usable(build_index(known, folder / "videos.parquet", progress=False), unlisted)


def _usable(index: ClipIndex, unlisted: dict[str, str]) -> Videos:
    """Part the rows whose status is ok from the others."""
    status = index.column("status")
    unreadable = {index.uri(i): str(reason) for i, reason in enumerate(status) if reason != "ok"}
    rows = np.flatnonzero(np.array([reason == "ok" for reason in status]))
    if not len(rows):
        raise UserError(f"{index.path}: none of its {len(index)} rows is usable (status ok)")
    return Videos(index, rows.astype(np.int64), unlisted | unreadable)
