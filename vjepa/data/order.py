"""Which source has step n, and which of its rows is sample number i.

Both are pure functions, of (seed, n) and (seed, i): there is nothing to save.

A Feistel network is a bijection of the numbers of 2k bits whatever its round function; walking its cycle until the
number is below n makes it a bijection of [0, n) (Black and Rogaway 2002, section 3).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from vjepa.counter_rng import generator

_ROUNDS = 8
_MASK64 = 0xFFFFFFFFFFFFFFFF


def source_of_step(seed: int, step: int, mix: Sequence[Fraction]) -> tuple[int, int]:
    """Give (source, n): step number `step` is the step number n of that source.

    Source 0 is data.train, source k is data.mix[k - 1].
    mix: the share of the steps of each source of the mix, each > 0, their sum < 1; data.train has the rest.
    """
    before, after = num_steps(seed, step, mix), num_steps(seed, step + 1, mix)
    source = next(k for k in range(len(before)) if after[k] > before[k])
    return source, before[source]


def num_steps(seed: int, steps: int, mix: Sequence[Fraction]) -> list[int]:
    """Count the steps that each source has of the first `steps`, data.train first; they sum to `steps`.

    Each is within len(mix) of its share: the first source of the mix takes its share of all steps, to within one step,
    the next takes its share of those that are left, and so on.
    """
    counts, left, share_left = [], steps, Fraction(1)
    for k, share in enumerate(mix):
        counts.append(_spread(seed, k, left, share / share_left))
        left, share_left = left - counts[-1], share_left - share
    return [left, *counts]


def total_steps(seed: int, train_steps: int, mix: Sequence[Fraction]) -> int:
    """Give the length of the shortest run in which data.train has `train_steps` steps."""
    enough = math.ceil((train_steps + len(mix)) / (1 - sum(mix)))
    return bisect_left(range(enough), train_steps, key=lambda steps: num_steps(seed, steps, mix)[0])


def _spread(seed: int, k: int, steps: int, share: Fraction) -> int:
    """Count the steps that source k of the mix takes of the first `steps`.

    It takes one, drawn by chance, in each stretch of 1 / share steps. Evenly, so that no part of a run lacks a source;
    but with no period, which could fall in with the workers of the loader, that get steps in turn: one would decode all
    clips and another all images (strict alternation of clips and stills with 2 workers: 8.1 batches/s, this order:
    15.0, measured on the demo videos).
    """
    if share > Fraction(1, 2):
        return steps - _spread(seed, k, steps, 1 - share)
    stretch = math.floor(steps * share)  # the one that step number `steps` lies in; every one before it has its step
    first, end = math.ceil(stretch / share), math.ceil((stretch + 1) / share)
    rng = generator(seed, "turns", (stretch << 8) + k)  # config: at most 256 in a mix
    taken = first + int(rng.integers(end - first))
    return stretch + (taken < steps)


def sample_row(seed: int, i: int, num_rows: int) -> int:
    """Place sample number i in [0, num_rows).

    Each epoch of num_rows samples has every row once, in an order of its own.
    """
    epoch, place = divmod(i, num_rows)
    return _permute(place, num_rows, _keys(seed, "order", epoch))


def replacement_row(seed: int, i: int, attempt: int, num_rows: int) -> int:
    """Place in [0, num_rows) what is tried when sample number i cannot be read.

    Attempts are distinct until every row was tried.
    """
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
    """Mix as the finaliser of splitmix64 does: every input bit reaches every output bit."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)
