"""Schedules: pure functions of the step, so that resuming has nothing to replay. The last step reaches the final value."""

from __future__ import annotations

import math


def progress(step: int, first: int, total: int) -> float:
    """0 at step `first`, 1 at the last step `total - 1`, and within [0, 1] outside."""
    return min(max((step - first) / max(total - 1 - first, 1), 0.0), 1.0)


def cosine(step: int, first: int, total: int, start: float, end: float) -> float:
    """Half a cosine from `start` to `end` (Loshchilov & Hutter 2017, eq. 5)."""
    return end + (start - end) * (1 + math.cos(math.pi * progress(step, first, total))) / 2


def linear(step: int, total: int, start: float, end: float) -> float:
    """A straight line from `start` to `end`."""
    return start + (end - start) * progress(step, 0, total)


def learning_rate(step: int, total: int, warmup: int, peak: float, end: float) -> float:
    """A linear rise over `warmup` steps, which never is 0, then a cosine to `end`."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return cosine(step, warmup, total, peak, end)


def ramp(step: int, first: int, last: int) -> float:
    """0 before step `first`, 1 from step `last` on, a straight line between."""
    return 1.0 if step >= last else max(step - first, 0) / (last - first)
