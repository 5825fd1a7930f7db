"""Tube masks: the same cells are hidden at every time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vjepa import config
from vjepa.masking import blocks
from vjepa.masking.exact import counts, cut, require_cells, tubes, uniforms
from vjepa.records import TokenGrid, TokenMask

ASPECT = (0.75, 1.5)  # height over width of the rectangles (V-JEPA)


def draw(mask: config.TubeMask, grid: TokenGrid, rngs: Sequence[np.random.Generator]) -> TokenMask:
    """Draw one mask per generator: context_ids [B, t * (cells - hidden)] and target_ids [B, t * predicted].

    Together they are the grid, where all that is hidden is predicted. Raises UserError for a grid of a single cell,
    which cannot be split into context and target.
    """
    require_cells(grid)
    seen, predicted = counts(mask, grid.cells)
    key, places = uniforms(rngs, grid.cells, mask.num_blocks * blocks.NUM_UNIFORMS)
    if mask.num_blocks:
        # the share of one rectangle, so that the expected union is about the cells to hide
        share = 1 - (seen / grid.cells) ** (1 / mask.num_blocks)
        inside = blocks.union_depth(places, grid, (share, share), ASPECT)[:, 0]
        key = key - inside  # depths differ by whole numbers: chance breaks ties
    context, target = cut(key, seen, predicted)
    return TokenMask(torch.from_numpy(tubes(context, grid)), torch.from_numpy(tubes(target, grid)))
