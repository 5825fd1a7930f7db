"""V-JEPA's masks: a union of cuboids is hidden from the context and predicted (V-JEPA section 3.2).

The reference code cuts the sorted ids of every mask to the smallest of the batch, which starves the end of the clip.
Here counts are exact: the cuboids of a clip grow or shrink together, by the same margin on all sides, until they hide
as many tokens as they do on average; counts below that keep whole cells drawn by chance. `trim: raster` is the
reference's way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from einops import repeat

from vjepa import config
from vjepa.counter_rng import generator
from vjepa.errors import UserError
from vjepa.masking import blocks
from vjepa.masking.exact import cut, require_cells, uniforms, whole_cells
from vjepa.records import TokenGrid, TokenMask

EXPECTATION_DRAWS = 256  # masks that the expected counts are averaged over: within about 0.5 % of the grid


@dataclass(frozen=True)
class TokenCounts:
    """Count the tokens of a clip: outside the cuboids (`visible`), of these seen, and of the others predicted."""

    visible: int
    context: int
    target: int


@lru_cache(maxsize=256)
def counts(mask: config.MultiblockMask, grid: TokenGrid) -> TokenCounts:
    """Count exactly what `mask` shows and hides on `grid`.

    By default these are whole cells, and context and target together are the grid.

    Raises UserError, which begins with the name of the setting, where there are not so many tokens.
    """
    require_cells(grid)
    visible = _expected_visible(mask, grid)
    most = min(_num_early_slots(mask, grid) * grid.cells, grid.num_tokens - (mask.num_target or 1))
    if most < 1:
        raise UserError(
            f"num_target: {mask.num_target} targets leave none of the {grid.num_tokens} tokens to the context"
        )
    context = mask.num_context or min(visible, most, mask.max_keep or most)
    if context > most:
        raise UserError(
            f"num_context: {context} of the {grid.num_tokens} tokens, but at most {most} can be context; "
            "lower it, or num_target"
        )
    visible = max(visible, context)
    if mask.full_complement:
        return TokenCounts(visible, context, grid.num_tokens - context)
    target = mask.num_target or grid.num_tokens - visible
    return TokenCounts(min(visible, grid.num_tokens - target), context, target)


def draw(mask: config.MultiblockMask, grid: TokenGrid, rngs: Sequence[np.random.Generator]) -> TokenMask:
    """Draw one mask per generator, of the exact `counts`: context_ids [B, context], target_ids [B, target].

    With `trim: raster` the counts depend on the other clips of the batch.
    """
    num = counts(mask, grid)
    through_time = blocks.lasts_throughout(grid, mask.temporal_scale)
    places = grid.cells if through_time else grid.num_tokens
    cuboids, ties, pick, slots = uniforms(rngs, mask.num_blocks * blocks.NUM_UNIFORMS, places, places, grid.t)
    hidden = _hidden_depth(mask, grid, cuboids).reshape(-1, places)
    key = ties - hidden  # depths differ by whole numbers: chance breaks ties
    if mask.trim == "raster":
        return _raster(mask, grid, key if not through_time else repeat(key, "b c -> b (t c)", t=grid.t))
    if through_time:
        key = whole_cells(key, slots)
    key[:, _num_early_slots(mask, grid) * grid.cells :] = -np.inf  # hidden, wherever the cuboids are
    if (num.context, num.target) != (num.visible, grid.num_tokens - num.visible):
        pick = whole_cells(pick, slots) if through_time else pick
        key = _by_chance_on_either_side(key, pick, grid.num_tokens - num.visible)
    context, target = cut(key, num.context, num.target)
    return TokenMask(torch.from_numpy(context), torch.from_numpy(target))


def _hidden_depth(mask: config.MultiblockMask, grid: TokenGrid, cuboids: np.ndarray) -> np.ndarray:
    """Measure how deep each token lies in the hidden part, negative where visible: [B, (M 6)] -> [B, t or 1, h w]."""
    depth = blocks.union_depth(cuboids, grid, mask.spatial_scale, mask.aspect_ratio, mask.temporal_scale)
    return -depth if mask.inverse else depth


def _num_early_slots(mask: config.MultiblockMask, grid: TokenGrid) -> int:
    """Count the time slots that the context may see, from the first."""
    return max(1, math.floor(mask.max_temporal_keep * grid.t + 1e-9))


def _expected_visible(mask: config.MultiblockMask, grid: TokenGrid) -> int:
    """Average the number of visible tokens over draws that are always the same, rounded to whole cells.

    At least one cell is visible, and one is left.
    """
    cuboids = generator(0, "masks", 0).random((EXPECTATION_DRAWS, mask.num_blocks * blocks.NUM_UNIFORMS))
    early = _num_early_slots(mask, grid)
    cells = grid.cells * (_hidden_depth(mask, grid, cuboids)[:, :early] < 0).mean()
    return early * min(max(round(float(cells)), 1), grid.cells - (early == grid.t))


def _by_chance_on_either_side(key: np.ndarray, pick: np.ndarray, num_hidden: int) -> np.ndarray:
    """Reorder each side of a key [B, N] by `pick` [B, N].

    The `num_hidden` lowest of `key` still come first and the others last.
    """
    hidden = np.argpartition(key, num_hidden - 1, axis=1)[:, :num_hidden]
    lowered = np.take_along_axis(pick, hidden, axis=1) - pick.shape[1]  # picks are in [0, N)
    ordered = pick.copy()
    np.put_along_axis(ordered, hidden, lowered, axis=1)
    return ordered


def _raster(mask: config.MultiblockMask, grid: TokenGrid, key: np.ndarray) -> TokenMask:
    """Turn key [B, N], under 1/2 where cuboids hide, into ids in raster order, cut to the smallest of the batch.

    So the end of the clip starves. Not a function of the clip alone, by nature: another batch gives another cut.
    """
    early = _num_early_slots(mask, grid) * grid.cells
    visible = key >= 0.5
    visible[:, early:] = False
    clips = np.arange(len(key))
    visible[clips, key[:, :early].argmax(axis=1)] = True  # where cuboids hide everything, one token is seen
    visible[clips, key.argmin(axis=1)] = False
    seen = _cut_to_smallest([np.flatnonzero(row) for row in visible], mask.max_keep)
    if mask.full_complement:
        visible[:] = False
        np.put_along_axis(visible, seen, True, axis=1)
    hidden = _cut_to_smallest([np.flatnonzero(~row) for row in visible], None)
    return TokenMask(torch.from_numpy(seen), torch.from_numpy(hidden))


def _cut_to_smallest(rows: Sequence[np.ndarray], most: int | None) -> np.ndarray:
    smallest = min(len(row) for row in rows)
    return np.stack([row[: min(smallest, most or smallest)] for row in rows])
