"""Which file an entry is about, and whether it is as it was when it was scanned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from typing import Any, Final

import numpy as np

from data_prep.listing.entry import Entry
from data_prep.listing.places import file_facts, reaching
from data_prep.scanning.journal import Key
from vjepa.errors import UserError

_NUM_THREADS: Final = 16  # that ask a storage about files, which is nothing but waiting
_FILES_ASKED_AT_ONCE: Final = 4096


def file_of(entry: Entry) -> Key:
    """Name the file of an entry, which may be a member of a shard."""
    return entry.uri, entry.offset, entry.length


def file_states(entries: Sequence[Entry]) -> np.ndarray:
    """Ask for size in bytes and time of change in ns of the file of each of n entries: int64 [n, 2], -1: not known."""
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


def is_state(columns: Mapping[str, Any], state: np.ndarray) -> bool:
    """Tell whether a file is as it was when `columns` of the index were measured. state: of `file_states`."""
    return (_known(columns.get("file_bytes")), _known(columns.get("modified_ns"))) == tuple(state)


def _known(value: int | None) -> int:
    return -1 if value is None else value
