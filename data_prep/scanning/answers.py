"""Which files of a scan have their answer: from an interrupted scan, from the index that was there before, or given
now.

For each file little more is in memory than its name: the answers lie in the journal.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, Final

import numpy as np

from data_prep.listing.entry import Entry
from data_prep.listing.places import file_facts, reaching
from data_prep.scanning.journal import Journal, Key, Rows
from vjepa.data.clip_index import SCHEMA, ClipIndex, resolve
from vjepa.errors import UserError

PART: Final = "manifest_part"  # column of an index: [start_s, end_s] that a manifest asks for of a video, as JSON
_FROM_SOURCES: Final = {"uri", "offset", "length", "label", "label_id", "split", "group", "duplicate_of"}
_ANSWERED: Final = [name for name in SCHEMA.names if name not in _FROM_SOURCES]
_NUM_THREADS: Final = 16  # that ask a storage about files, which is nothing but waiting
_FILES_ASKED_AT_ONCE: Final = 4096


@dataclass
class Changes:
    """Count the files of a new scan against those of the index before."""

    same: int = 0
    same_unusable: int = 0  # of `same`
    changed: int = 0
    new: int = 0
    vanished: int = 0


class Answers:
    """Hold the answers for `entries`, of which each is another file or part of one."""

    def __init__(self, entries: Sequence[Entry], journal: Journal) -> None:
        self.entries = entries
        self.statuses: Counter[str] = Counter()  # of the rows so far
        self.num_answered = 0
        self._journal = journal
        self._places = array("q", [-1]) * len(entries)
        self._hashes = np.zeros(len(entries), np.uint64)  # `short_hash` of each

    def __getitem__(self, number: int) -> Rows:
        return self._journal.read(self._places[number])

    def missing(self) -> list[int]:
        """List the numbers of the entries that are still to be scanned."""
        return [number for number, place in enumerate(self._places) if place < 0]

    def add(self, number: int, rows: Rows) -> None:
        self._note(number, self._journal.append(key_of(self.entries[number]), rows), rows)

    def _note(self, number: int, place: int, rows: Rows) -> None:
        self._places[number] = place
        self._hashes[number] = short_hash(rows[0].get("content_hash"))
        self.num_answered += 1
        self.statuses.update(row["status"] for row in rows)

    def continue_scan(self, states: np.ndarray) -> None:
        """Take over what the journal holds of files that are as they were. states: of `file_states`."""
        numbers = self._numbers()
        for place, key, rows in self._journal.answers():
            number = numbers.get(key)
            if number is not None and self._places[number] < 0 and _is_state(rows, states[number]):
                self._note(number, place, rows)

    def take_over(self, index: ClipIndex, states: np.ndarray) -> Changes:
        """Take over what an index holds of files that are as they were. states: of `file_states`."""
        changes, numbers = Changes(), self._numbers()
        for key, rows in _files(index):
            number = numbers.get(key)
            if number is None:
                changes.vanished += 1
            elif not _is_state(rows, states[number]):
                changes.changed += 1
            else:
                changes.same += 1
                changes.same_unusable += is_unusable(rows[0]["status"])
                if self._places[number] < 0:
                    self.add(number, rows)
        changes.new = len(self.entries) - changes.same - changes.changed
        return changes

    def _numbers(self) -> dict[Key, int]:
        return {key_of(entry): number for number, entry in enumerate(self.entries)}

    def repeated_hashes(self) -> set[int]:
        """Find the `short_hash` that several files have.

        They are few, so that looking for duplicates takes little memory.
        """
        hashes, counts = np.unique(self._hashes[self._hashes > 0], return_counts=True)
        return set(hashes[counts > 1].tolist())


def key_of(entry: Entry) -> Key:
    return entry.uri, entry.offset, entry.length, entry.start_s, entry.end_s


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


def file_states(entries: Sequence[Entry]) -> np.ndarray:
    """Ask for size in bytes and time of change in ns of the file of each entry: int64 [n, 2], -1: not known."""
    states = np.full((len(entries), 2), -1, np.int64)
    files = groupby(range(len(entries)), key=lambda number: entries[number].uri)  # members of a shard lie side by side
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        while some := [(uri, list(numbers)) for uri, numbers in islice(files, _FILES_ASKED_AT_ONCE)]:
            for (_, numbers), state in zip(some, threads.map(_state, [uri for uri, _ in some]), strict=True):
                states[numbers] = state
    return states


def _state(uri: str) -> tuple[int, int]:
    try:
        with reaching(uri):
            facts = file_facts(uri)
    except UserError:
        return -1, -1
    return _known(facts.file_bytes), _known(facts.modified_ns)


def _is_state(rows: Rows, state: np.ndarray) -> bool:
    return (_known(rows[0].get("file_bytes")), _known(rows[0].get("modified_ns"))) == tuple(state)


def _known(value: int | None) -> int:
    return -1 if value is None else value


def short_hash(content_hash: str | None) -> int:
    """Take the first 64 bits of a content hash; 0 where there is none."""
    return int(content_hash[:16], 16) if content_hash else 0


def _files(index: ClipIndex) -> Iterator[tuple[Key, Rows]]:
    """Yield the rows of each file, which lie side by side, as they were scanned."""
    folder = str(index.path.parent)
    for key, rows in groupby(index.records(), key=lambda row: _key_of_row(row, folder)):
        yield key, [{name: row[name] for name in _ANSWERED if row[name] is not None} for row in rows]


def _key_of_row(row: dict[str, Any], folder: str) -> Key:
    start_s, end_s = json.loads(row.get(PART) or "[null, null]")
    return resolve(row["uri"], folder), row["offset"], row["length"], start_s, end_s
