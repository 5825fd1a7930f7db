"""Blocks of random size, shape and place, told by how deep each token lies inside."""

from __future__ import annotations

from functools import reduce

import numpy as np
from einops import rearrange

from vjepa.records import TokenGrid

Range = tuple[float, float]
NUM_UNIFORMS = 6  # what one block takes: area, aspect, row, column, duration, time slot; each independent of the others


def depth(
    uniforms: np.ndarray, grid: TokenGrid, scale: Range, aspect: Range, duration: Range = (1.0, 1.0)
) -> np.ndarray:
    """Place a block for each clip, and measure how deep each token lies in it: [B, 6] in [0, 1) -> float [B, t, h w].

    A token at the inner side of the nearest border has depth 1/2, each further inside one more; outside it is minus
    that. Hence the `n` deepest tokens are the block, grown or shrunk evenly to size n.
    `scale` is area over h w, `aspect` height over width, `duration` slots over t. A block lies wholly inside the frame;
    in time it leaves at the end and comes in again at the start, so that no slot is favoured. Where every block lasts
    for all t, the answer is [B, 1, h w].
    """
    area, ratio, row, column, lasting, slot = uniforms.T
    area = grid.cells * (scale[0] + (scale[1] - scale[0]) * area)
    ratio = aspect[0] * (aspect[1] / aspect[0]) ** ratio
    height = np.clip(np.round(np.sqrt(area * ratio)), 1, grid.h)
    width = np.clip(np.round(area / height), 1, grid.w)
    rows = _profile(np.floor(row * (grid.h - height + 1)), height, grid.h)
    columns = _profile(np.floor(column * (grid.w - width + 1)), width, grid.w)
    inside: np.ndarray = rearrange(np.minimum(rows[:, :, None], columns[:, None, :]), "b h w -> b 1 (h w)")
    if lasts_throughout(grid, duration):
        return inside
    slots = np.clip(np.round(grid.t * (duration[0] + (duration[1] - duration[0]) * lasting)), 1, grid.t)
    times = _profile(np.floor(slot * grid.t), slots, grid.t, around=True)
    within: np.ndarray = np.minimum(inside, times[:, :, None])
    return within


def union_depth(
    uniforms: np.ndarray, grid: TokenGrid, scale: Range, aspect: Range, duration: Range = (1.0, 1.0)
) -> np.ndarray:
    """Measure the `depth` of each token in the union of M blocks: [B, (M 6)] -> [B, t, h w].

    It loops over blocks for memory: M times less of it.
    """
    each = rearrange(uniforms, "b (m u) -> m b u", u=NUM_UNIFORMS)
    return reduce(np.maximum, (depth(one, grid, scale, aspect, duration) for one in each))


def lasts_throughout(grid: TokenGrid, duration: Range) -> bool:
    """Tell whether every block of this duration covers all time slots: then its cells are the same at every time."""
    return max(1, round(grid.t * duration[0])) == grid.t


def _profile(start: np.ndarray, size: np.ndarray, length: int, around: bool = False) -> np.ndarray:
    """Measure the depth of each place in an interval: starts and sizes [B] on an axis of `length` -> [B, length].

    around: the axis is a circle.
    """
    distance = np.abs(np.arange(length) + 0.5 - (start + size / 2)[:, None])
    if around:
        distance = np.minimum(distance, length - distance)
    inside: np.ndarray = size[:, None] / 2 - distance
    return np.where(size[:, None] == length, np.inf, inside) if around else inside
