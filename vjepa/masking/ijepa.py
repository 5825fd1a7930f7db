"""I-JEPA's masks: from one context block, several target blocks are predicted apart (I-JEPA section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from einops import rearrange

from vjepa import config
from vjepa.counter_rng import generator
from vjepa.errors import UserError
from vjepa.masking import blocks
from vjepa.masking.exact import tubes, uniforms
from vjepa.records import TokenGrid, TokenMask

EXPECTATION_DRAWS = 256


@dataclass(frozen=True)
class CellCounts:
    """Count the cells of the context, and of each target block."""

    context: int
    target: int


@lru_cache(maxsize=256)
def counts(mask: config.IjepaMask, grid: TokenGrid) -> CellCounts:
    """Count exactly: the smallest target block, and the expected area of the context block outside the targets.

    Raises UserError, which begins with the name of the setting, where a target leaves no context.
    """
    target = max(1, round(mask.target_scale[0] * grid.cells))
    if target >= grid.cells:
        raise UserError(f"target_scale: a target of {target} cells leaves none of {grid.h}x{grid.w} to the context")
    drawn = generator(0, "masks", 0).random((EXPECTATION_DRAWS, (mask.num_targets + 1) * blocks.NUM_UNIFORMS))
    context_depth, target_depths = _depths(mask, grid, drawn)
    seen = (context_depth > 0) & (target_depths.max(axis=1) < 0)
    return CellCounts(min(max(round(seen.sum(axis=1).mean()), 1), grid.cells - target), target)


def draw(mask: config.IjepaMask, grid: TokenGrid, rngs: Sequence[np.random.Generator]) -> TokenMask:
    """Draw one mask per generator: context_ids [B, t * context], target_ids [B, num_targets * t * target].

    The ids of targets stand block after block. The context is drawn from the cells of its block outside all targets;
    where these are too few it takes in the cells around the block, then the rims of targets. Each target is drawn from
    the cells of its block that are not context; where these are too few, the block grows. So both are always possible,
    whatever the blocks.
    """
    num = counts(mask, grid)
    num_places = (mask.num_targets + 1) * blocks.NUM_UNIFORMS
    places, ties, picks = uniforms(rngs, num_places, grid.cells, mask.num_targets * grid.cells)
    context_depth, target_depths = _depths(mask, grid, places)
    far = grid.h + grid.w  # more than any depth
    cost = far * np.maximum(target_depths.max(axis=1), 0) + np.maximum(-context_depth, 0) + ties / 2
    context = np.argpartition(cost, num.context - 1, axis=1)[:, : num.context]
    costs = np.maximum(-target_depths, 0) + rearrange(picks, "b (m c) -> b m c", m=mask.num_targets) / 2
    np.put_along_axis(costs, context[:, None, :], np.inf, axis=2)
    targets = np.argpartition(costs, num.target - 1, axis=2)[:, :, : num.target]
    context = tubes(np.sort(context), grid)
    targets = rearrange(tubes(np.sort(targets), grid), "b m k -> b (m k)")
    return TokenMask(torch.from_numpy(context), torch.from_numpy(targets), mask.num_targets)


def _depths(mask: config.IjepaMask, grid: TokenGrid, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measure how deep each cell lies in the context block [B, h w] and in each target block [B, M, h w].

    places: [B, ((1 + M) 6)] in [0, 1).
    """
    first, *others = rearrange(places, "b (m u) -> m b u", u=blocks.NUM_UNIFORMS)
    context = blocks.depth(first, grid, mask.context_scale, (1.0, 1.0))
    targets = [blocks.depth(other, grid, mask.target_scale, mask.target_aspect) for other in others]
    return context[:, 0], np.concatenate(targets, axis=1)
