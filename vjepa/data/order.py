"""Which row is sample number i: a pure function of (seed, i), with no permutation in memory and none to save.

A Feistel network is a bijection of the numbers of 2k bits whatever its round function; walking its cycle until the
number is below n makes it a bijection of [0, n) (Black and Rogaway 2002, section 3).
"""

from __future__ import annotations

from functools import lru_cache

from vjepa.counter_rng import generator

_ROUNDS = 8
_MASK64 = 0xFFFFFFFFFFFFFFFF


def sample_row(seed: int, i: int, num_rows: int) -> int:
    """Place in [0, num_rows) of sample number i. Each epoch of num_rows samples has every row once, in an order of its own."""
    epoch, place = divmod(i, num_rows)
    return _permute(place, num_rows, _keys(seed, "order", epoch))


def replacement_row(seed: int, i: int, attempt: int, num_rows: int) -> int:
    """Place in [0, num_rows) to try when sample number i cannot be read; attempts are distinct until every row was tried."""
    return _permute(attempt % num_rows, num_rows, _keys(seed, "replacement", i))


@lru_cache(maxsize=64)
def _keys(seed: int, stream: str, counter: int) -> tuple[int, ...]:
    return tuple(int(key) for key in generator(seed, stream, counter).integers(1 << 64, size=_ROUNDS, dtype="uint64"))


def _permute(place: int, n: int, keys: tuple[int, ...]) -> int:
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    while True:  # at most 4 n numbers have 2 * half bits: 4 turns on average
        place = _feistel(place, half, keys)
        if place < n:
            return place


def _feistel(x: int, half: int, keys: tuple[int, ...]) -> int:
    left, right = x >> half, x & ((1 << half) - 1)
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) >> (64 - half))
    return left << half | right


def _mix(x: int) -> int:
    """The finaliser of splitmix64: every input bit reaches every output bit."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)
