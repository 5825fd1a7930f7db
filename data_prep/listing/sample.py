"""Some of many, evenly: for a first look at what would take days to scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from data_prep.listing.entry import Entry

Item = TypeVar("Item")


def evenly(items: Sequence[Item], num: int) -> list[Item]:
    """Take `num` of n items, or all where there are no more: item number (i + 1/2) n / num for each i, rounded down.

    It is the same choice each time, and no period of the list is favoured by its beginning.
    """
    n = len(items)
    return [items[(2 * i + 1) * n // (2 * num)] for i in range(num)] if num < n else list(items)


def sample_of_files(entries: Sequence[Entry], num: int) -> tuple[list[Entry], int]:
    """Take the entries of `num` files, evenly in the order in which files are first named; and count all files.

    A file that is taken has all of its parts.
    """
    files = list(dict.fromkeys((entry.uri, entry.offset) for entry in entries))
    taken = set(evenly(files, num))
    return [entry for entry in entries if (entry.uri, entry.offset) in taken], len(files)
