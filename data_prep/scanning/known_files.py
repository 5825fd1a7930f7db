"""What scans found in files of which a list names parts. It stays beside the index: other parts are cut from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from data_prep.listing.entry import Entry
from data_prep.scanning.file_state import file_of, is_state
from data_prep.scanning.journal import Journal, Key
from data_prep.scanning.track import FileScan


class KnownFiles:
    """Keep a journal of files; use as a context manager. header: what their scans depend on; another begins it anew."""

    def __init__(self, out: Path, header: dict[str, Any]) -> None:
        """Open or begin that of the index `out`. Raises UserError as `Journal` does."""
        self._journal = Journal(out.with_name(f".{out.name}.frames.jsonl"), header)
        self._folder = f"{out.parent}/"

    def __enter__(self) -> KnownFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.__exit__(kind, error, trace)

    @property
    def has_answers(self) -> bool:
        return self._journal.has_answers

    def find(self, files: Mapping[int, Entry], states: np.ndarray) -> dict[int, int]:
        """Find those files that are known and as they were: number -> place, for `read`.

        files: number -> an entry of the file. states: of `file_states`, by the number.
        """
        wanted = {self._key(entry): file for file, entry in files.items()}
        found = {}
        for place, key, scan in self._journal.answers():
            file = wanted.get(key)
            if file is not None and is_state(scan["columns"], states[file]):
                found[file] = place
        return found

    def read(self, place: int) -> FileScan:
        return FileScan.from_json(self._journal.read(place))

    def add(self, entry: Entry, found: FileScan) -> None:
        """Keep what is in the file of an entry."""
        self._journal.append(self._key(entry), found.to_json())

    def clear(self) -> None:
        self._journal.clear()

    def _key(self, entry: Entry) -> Key:
        """Name a file as the index does, so that both may be moved together with the files."""
        uri, *place = file_of(entry)
        return str(uri).removeprefix(self._folder), *place
