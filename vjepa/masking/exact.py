"""Exact counts of sorted token ids out of random numbers, for all clips of a batch at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from einops import rearrange

from vjepa import config
from vjepa.errors import UserError
from vjepa.records import TokenGrid


def require_cells(grid: TokenGrid) -> None:
    """Raise UserError for a grid of a single cell, which cannot be split into context and target."""
    if grid.cells < 2:
        raise UserError(
            f"kind: a grid of {grid.h}x{grid.w} cells has nothing to hide; use a larger data.crop_px or a "
            "smaller model.patch_px"
        )


def counts(mask: config.RatioMask, num_places: int) -> tuple[int, int]:
    """Count the places, of so many, that are context and those that are predicted; neither is 0."""
    hidden = min(max(round(mask.ratio * num_places), 1), num_places - 1)
    return num_places - hidden, max(round(mask.predicted_ratio * hidden), 1)


def uniforms(rngs: Sequence[np.random.Generator], *sizes: int) -> list[np.ndarray]:
    """Draw one float64 [B, size] in [0, 1) per size.

    Row i comes from generator i in a single call, which is what keeps masks fast.
    """
    drawn = np.stack([rng.random(sum(sizes)) for rng in rngs])
    return np.split(drawn, np.cumsum(sizes)[:-1], axis=1)


def cut(key: np.ndarray, num_context: int, num_target: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut key [B, N] into the sorted ids of its highest and of its lowest values.

    They are the context [B, num_context] and the targets [B, num_target]. The counts are at least 1 and at most N
    together.
    """
    first = key.shape[1] - num_context
    order = np.argpartition(key, first, axis=1)
    rest, context = order[:, :first], order[:, first:]
    if num_target < first:  # one border after the other: faster than both at once
        lowest = np.argpartition(np.take_along_axis(key, rest, axis=1), num_target, axis=1)[:, :num_target]
        rest = np.take_along_axis(rest, lowest, axis=1)
    return np.sort(context, axis=1), np.sort(rest, axis=1)


def whole_cells(priority: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """Rank tokens cell by cell, and within a cell by slot: priority [B, h w], slots in [0, 1) [B, t] -> key [B, N].

    So every `cut` takes whole cells through time, and the remainder of one cell at chance times: no time is favoured.
    """
    rank = priority.argsort(axis=1).argsort(axis=1)
    return rearrange(rank[:, None, :] + slots[:, :, None], "b t c -> b (t c)")


def tubes(cells: np.ndarray, grid: TokenGrid) -> np.ndarray:
    """Take sorted cells [..., K] at every time -> sorted token ids [..., t K]."""
    return rearrange(cells[..., None, :] + grid.cells * np.arange(grid.t)[:, None], "... t k -> ... (t k)")
