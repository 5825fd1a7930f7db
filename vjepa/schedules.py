"""Schedules: pure functions of the step, so that resuming has nothing to replay; the last step reaches the end."""

from __future__ import annotations

import math

from vjepa import config


def progress(step: int, first: int, total: int) -> float:
    """Rise from 0 at step `first` to 1 at the last step, `total - 1`; stay within [0, 1] outside."""
    return min(max((step - first) / max(total - 1 - first, 1), 0.0), 1.0)


def cosine(step: int, first: int, total: int, start: float, end: float) -> float:
    """Follow half a cosine from `start` to `end` (Loshchilov & Hutter 2017, eq. 5)."""
    return end + (start - end) * (1 + math.cos(math.pi * progress(step, first, total))) / 2


def linear(step: int, total: int, start: float, end: float) -> float:
    """Follow a straight line from `start` to `end`."""
    return start + (end - start) * progress(step, 0, total)


def learning_rate(step: int, total: int, optim: config.Optim) -> float:
    """Rise linearly from `start_lr` over the warm-up, never from 0; then follow a cosine or a line to `final_lr`.

    With `decay_steps` it stays between the two.
    """
    warmup = total // 10 if optim.warmup_steps is None else optim.warmup_steps
    if step < warmup:
        return optim.start_lr + (optim.peak_lr - optim.start_lr) * (step + 1) / (warmup + 1)
    first = warmup if optim.decay_steps is None else max(warmup, total - optim.decay_steps)
    if optim.lr_shape == "linear":
        return optim.peak_lr + (optim.final_lr - optim.peak_lr) * progress(step, first, total)
    return cosine(step, first, total, optim.peak_lr, optim.final_lr)


def laid_out(total: int, optim: config.Optim) -> int:
    """Count the steps that schedules are laid out over: those of the run, or more of which it sees the first."""
    return round(total * optim.schedule_stretch)


def ramp(step: int, first: int, last: int) -> float:
    """Stay 0 before step `first`, rise in a straight line, be 1 from step `last` on."""
    return 1.0 if step >= last else max(step - first, 0) / (last - first)
