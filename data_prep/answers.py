"""Which files of a scan have their answer: from an interrupted scan, from the index that was there before, or given now.

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

from data_prep.journal import Journal, Key, Rows
from data_prep.scan import file_facts
from data_prep.sources import Entry
from vjepa.data.clip_index import SCHEMA, ClipIndex, resolve

PART: Final = "manifest_part"  # column of an index: [start_s, end_s] that a manifest asks for of a video, as JSON
_FROM_SOURCES: Final = {"uri", "offset", "length", "label", "label_id", "split", "group", "duplicate_of"}
_ANSWERED: Final = [name for name in SCHEMA.names if name not in _FROM_SOURCES]
_NUM_THREADS: Final = 16  # that ask a storage about files, which is nothing but waiting
_FILES_ASKED_AT_ONCE: Final = 4096


@dataclass
class Changes:
    """Files of a new scan against those of the index before."""

    same: int = 0
    same_unusable: int = 0  # of `same`
    changed: int = 0
    new: int = 0
    vanished: int = 0


class Answers:
    """The answers for `entries`. A file, or part of one, that is listed several times is scanned once."""

    def __init__(self, entries: Sequence[Entry], journal: Journal) -> None:
        self.entries = entries
        self.numbers: dict[Key, int] = {}  # of the entry that lists a file first
        for number, entry in enumerate(entries):
            self.numbers.setdefault(key_of(entry), number)
        self.statuses: Counter[str] = Counter()  # of the rows so far
        self.num_answered = 0
        self._journal = journal
        self._places = array("q", [-1]) * len(entries)
        self._hashes = np.zeros(len(entries), np.uint64)  # the first 64 bits of each content hash

    def __getitem__(self, entry: Entry) -> Rows:
        return self._journal.read(self._places[self.numbers[key_of(entry)]])

    def missing(self) -> list[int]:
        """Numbers of the entries that are still to be scanned."""
        return [number for number in self.numbers.values() if self._places[number] < 0]

    def add(self, number: int, rows: Rows) -> None:
        self._note(number, self._journal.append(key_of(self.entries[number]), rows), rows)

    def _note(self, number: int, place: int, rows: Rows) -> None:
        self._places[number] = place
        self._hashes[number] = _short(rows[0].get("content_hash"))
        self.num_answered += 1
        self.statuses.update(row["status"] for row in rows)

    def continue_scan(self, states: np.ndarray) -> None:
        """Take over what the journal holds of files that are as they were. states: of `file_states`."""
        for place, key, rows in self._journal.answers():
            number = self.numbers.get(key)
            if number is not None and self._places[number] < 0 and _is_state(rows, states[number]):
                self._note(number, place, rows)

    def take_over(self, index: ClipIndex, states: np.ndarray) -> Changes:
        """Take over what an index holds of files that are as they were. states: of `file_states`."""
        changes, seen = Changes(), bytearray(len(self.entries))
        for key, rows in _files(index):
            number = self.numbers.get(key)
            if number is None:
                changes.vanished += 1
            elif not seen[number]:
                seen[number] = True
                if not _is_state(rows, states[number]):
                    changes.changed += 1
                    continue
                changes.same += 1
                changes.same_unusable += is_unusable(rows[0]["status"])
                if self._places[number] < 0:
                    self.add(number, rows)
        changes.new = len(self.numbers) - changes.same - changes.changed
        return changes

    def has_twin(self, content_hash: str | None) -> bool:
        """Whether several files may have this content; False is certain."""
        return content_hash is not None and _short(content_hash) in self._repeated()

    def _repeated(self) -> set[int]:
        if not hasattr(self, "_twins"):
            hashes, counts = np.unique(self._hashes[self._hashes > 0], return_counts=True)
            self._twins = set(hashes[counts > 1].tolist())
        return self._twins


def key_of(entry: Entry) -> Key:
    return entry.uri, entry.offset, entry.length, entry.start_s, entry.end_s


def is_filtered(status: str) -> bool:
    return status.startswith("filtered")


def is_unusable(status: str) -> bool:
    return status != "ok" and not is_filtered(status)


def part_of(entry: Entry) -> str | None:
    """What the column PART says of an entry."""
    return None if entry.start_s is None and entry.end_s is None else json.dumps([entry.start_s, entry.end_s])


def file_states(entries: Sequence[Entry]) -> np.ndarray:
    """Size in bytes and time of change in ns of the file of each entry, -1 where it is not known: int64 [n, 2]."""
    states = np.full((len(entries), 2), -1, np.int64)
    files = groupby(range(len(entries)), key=lambda number: entries[number].uri)  # members of a shard lie side by side
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        while some := [(uri, list(numbers)) for uri, numbers in islice(files, _FILES_ASKED_AT_ONCE)]:
            for (_, numbers), state in zip(some, threads.map(_state, [uri for uri, _ in some]), strict=True):
                states[numbers] = state
    return states


def _state(uri: str) -> tuple[int, int]:
    try:
        facts = file_facts(uri)
    except OSError:
        return -1, -1
    return _known(facts.file_bytes), _known(facts.modified_ns)


def _is_state(rows: Rows, state: np.ndarray) -> bool:
    return (_known(rows[0].get("file_bytes")), _known(rows[0].get("modified_ns"))) == tuple(state)


def _known(value: int | None) -> int:
    return -1 if value is None else value


def _short(content_hash: str | None) -> int:
    return int(content_hash[:16], 16) if content_hash else 0


def _files(index: ClipIndex) -> Iterator[tuple[Key, Rows]]:
    """The rows of each file, which lie side by side, as they were scanned."""
    folder, rows, last = str(index.path.parent), Rows(), None
    for row in index.records():
        key = _key_of_row(row, folder)
        # a file that is listed twice running begins again with its first clip
        if last and rows and (key != last or row["first_frame"] <= rows[-1]["first_frame"]):
            yield last, rows
            rows = []
        rows.append({name: row[name] for name in _ANSWERED if row[name] is not None})
        last = key
    if last:
        yield last, rows


def _key_of_row(row: dict[str, Any], folder: str) -> Key:
    start_s, end_s = json.loads(row.get(PART) or "[null, null]")
    return resolve(row["uri"], folder), row["offset"], row["length"], start_s, end_s
