"""Which entries of a scan have their answer: from an interrupted scan, from the index that was there before, or given
now.

For each entry little more is in memory than its name: the answers lie in the journal.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import numpy as np

from data_prep.listing.entry import Entry
from data_prep.scanning.alignment import MISFIT
from data_prep.scanning.file_state import file_of, file_states, is_state
from data_prep.scanning.journal import Journal, Key
from data_prep.scanning.known_files import KnownFiles
from data_prep.scanning.options import ScanOptions
from data_prep.scanning.track import FileScan
from vjepa.data.clip_index import SCHEMA, ClipIndex, resolve

Rows = list[dict[str, Any]]  # of one entry

PART: Final = "manifest_part"  # column of an index: [start_s, end_s] that a manifest asks for of a video, as JSON
_FROM_SOURCES: Final = {
    "uri", "offset", "length", "label", "label_id", "split", "group", "duplicate_of", "action", "state", "track_times_s"
}  # fmt: skip
_ANSWERED: Final = [name for name in SCHEMA.names if name not in _FROM_SOURCES]


@dataclass
class Changes:
    """Count the files of a new scan against those of the index before."""

    same: int = 0
    same_unusable: int = 0  # of `same`
    changed: int = 0
    new: int = 0
    vanished: int = 0

    def __str__(self) -> str:
        kept = f" ({self.same_unusable} not usable; --rescan tries them again)" if self.same_unusable else ""
        return f"{self.same} files are as they were{kept}, {self.changed} changed, {self.new} new, {self.vanished} gone"


class Answers:
    """Hold the answers for `entries`, of which each is another file or part of one: the rows of each.

    A file is known by a number, in the order in which the entries first name it.
    """

    def __init__(
        self, entries: Sequence[Entry], options: ScanOptions, journal: Journal, known: KnownFiles | None = None
    ) -> None:
        """Take the options by which files are cut, and what is known of files of which parts are wanted."""
        self.entries = entries
        self.statuses: Counter[str] = Counter()  # of the rows so far
        self._options, self._journal, self._known = options, journal, known
        self._known_places: dict[int, int] = {}  # of files that are still to be cut
        self._places = array("q", [-1]) * len(entries)
        self._hashes = np.zeros(len(entries), np.uint64)  # `short_hash` of each
        numbers: dict[Key, int] = {}
        self._files = np.array([numbers.setdefault(file_of(entry), len(numbers)) for entry in entries], np.int64)
        self._by_file = np.argsort(self._files, kind="stable")  # entries; those of one file side by side, in order
        self._starts = np.searchsorted(self._files[self._by_file], np.arange(len(numbers) + 1))
        self._num_open = np.diff(self._starts)  # entries of each file without an answer

    def __getitem__(self, number: int) -> Rows:
        rows: Rows = self._journal.read(self._places[number])
        return rows

    @property
    def num_files(self) -> int:
        return len(self._num_open)

    @property
    def num_answered(self) -> int:
        """Count the files of which every entry has its answer."""
        return int((self._num_open == 0).sum())

    def first_entry(self, file: int) -> Entry:
        return self.entries[int(self._by_file[self._starts[file]])]

    def is_first(self, number: int) -> bool:
        """Tell whether an entry is the first of its file."""
        return bool(self._by_file[self._starts[self._files[number]]] == number)

    def missing(self) -> list[int]:
        """List the files that are still to be scanned, or cut."""
        files: list[int] = np.flatnonzero(self._num_open).tolist()
        return files

    def add_file(self, file: int, found: FileScan) -> None:
        """Cut what a scan found in a file into the answers of its entries."""
        if self._known and any(part_of(self.entries[number]) for number in self._entries_of(file)):
            self._known.add(self.first_entry(file), found)
        self._cut(file, found)

    @property
    def knows_files(self) -> bool:
        return self._known is not None and self._known.has_answers

    def look_up(self, states: np.ndarray) -> int:
        """Find what is known of the files that are missing, for `cut_known`, and count them. states: of `states`."""
        if self._known:
            self._known_places = self._known.find({file: self.first_entry(file) for file in self.missing()}, states)
        return len(self._known_places)

    def cut_known(self) -> Iterator[int]:
        """Cut the files that `look_up` found, and yield the number of each."""
        for file, place in self._known_places.items():
            if self._known:
                self._cut(file, self._known.read(place))
            yield file

    def states(self) -> np.ndarray:
        """Ask what each file is like: `file_states`."""
        return file_states([self.first_entry(file) for file in range(self.num_files)])

    def continue_scan(self, states: np.ndarray) -> None:
        """Take over what the journal holds of files that are as they were. states: of `states`."""
        numbers = self._numbers()
        for place, key, rows in self._journal.answers():
            number = numbers.get(key)
            if number is not None and self._places[number] < 0 and is_state(rows[0], states[self._files[number]]):
                self._note(number, place, rows)

    def take_over(self, index: ClipIndex, states: np.ndarray) -> Changes:
        """Take over what an index holds of files that are as they were. states: of `states`."""
        changes, numbers, seen = Changes(), self._numbers(), set[Key]()
        files = {file_of(self.first_entry(file)): file for file in range(self.num_files)}
        for key, rows in _files(index):
            file = files.get(key[:3])
            same = file is not None and is_state(rows[0], states[file])
            if key[:3] not in seen:
                changes.same += same
                changes.same_unusable += same and is_unusable(rows[0]["status"])
                changes.changed += file is not None and not same
                changes.vanished += file is None
                seen.add(key[:3])
            number = numbers.get(key)
            if same and number is not None and self._places[number] < 0:
                self._add(number, rows)
        changes.new = self.num_files - changes.same - changes.changed
        return changes

    def _cut(self, file: int, found: FileScan) -> None:
        for number in self._entries_of(file):
            if self._places[number] < 0:
                entry = self.entries[number]
                self._add(number, found.clips(self._options, entry.start_s, entry.end_s))

    def _entries_of(self, file: int) -> list[int]:
        numbers: list[int] = self._by_file[self._starts[file] : self._starts[file + 1]].tolist()
        return numbers

    def _add(self, number: int, rows: Rows) -> None:
        self._note(number, self._journal.append(_key_of(self.entries[number]), rows), rows)

    def _note(self, number: int, place: int, rows: Rows) -> None:
        self._places[number] = place
        self._hashes[number] = short_hash(rows[0].get("content_hash"))
        self._num_open[self._files[number]] -= 1
        self.statuses.update(row["status"] for row in rows)

    def _numbers(self) -> dict[Key, int]:
        return {_key_of(entry): number for number, entry in enumerate(self.entries)}

    def repeated_hashes(self) -> set[int]:
        """Find the `short_hash` that several files have.

        They are few, so that looking for duplicates takes little memory.
        """
        of_files = self._hashes[self._by_file[self._starts[:-1]]]
        hashes, counts = np.unique(of_files[of_files > 0], return_counts=True)
        return set(hashes[counts > 1].tolist())


def _key_of(entry: Entry) -> Key:
    return *file_of(entry), entry.start_s, entry.end_s


def is_filtered(status: str) -> bool:
    return status.startswith("filtered")


def is_unusable(status: str) -> bool:
    return status != "ok" and not is_filtered(status)


def counted(reasons: Counter[str], at_most: int = 12) -> str:
    """Write the commonest reasons with their counts."""
    named = ", ".join(f"{reason} x{count}" for reason, count in reasons.most_common(at_most))
    return named + (", ..." if len(reasons) > at_most else "")


def part_of(entry: Entry) -> str | None:
    """Write what the column PART says of an entry."""
    return None if entry.start_s is None and entry.end_s is None else json.dumps([entry.start_s, entry.end_s])


def short_hash(content_hash: str | None) -> int:
    """Take the first 64 bits of a content hash; 0 where there is none."""
    return int(content_hash[:16], 16) if content_hash else 0


def _files(index: ClipIndex) -> Iterator[tuple[Key, Rows]]:
    """Yield the rows of each file, or part of one, which lie side by side, as they were scanned."""
    folder = str(index.path.parent)
    names = [name for name in (*_ANSWERED, "uri", "offset", "length", PART) if name in index.names]
    for key, rows in groupby(index.records(names), key=lambda row: _key_of_row(row, folder)):
        yield key, [_answer(row) for row in rows]


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    """Take what a scan found out of a row of an index: a film is well where only its track is not."""
    found = {name: row[name] for name in _ANSWERED if row[name] is not None}
    return found | ({"status": "ok"} if found["status"].startswith(MISFIT) else {})


def _key_of_row(row: dict[str, Any], folder: str) -> Key:
    start_s, end_s = json.loads(row.get(PART) or "[null, null]")
    return resolve(row["uri"], folder), row["offset"], row["length"], start_s, end_s
