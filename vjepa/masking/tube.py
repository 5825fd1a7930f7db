"""Tube masks: the same cells are hidden at every time."""

from __future__ import annotations

import numpy as np
import torch

from vjepa import config
from vjepa.counter_rng import generator
from vjepa.errors import UserError
from vjepa.records import TokenGrid, TokenMask


def num_hidden_cells(mask: config.TubeMask, grid: TokenGrid) -> int:
    """The exact number of cells that `mask` hides in every time slot: at least one, and at least one is left.

    Raises UserError for a grid of a single cell, which cannot be split into context and target.
    """
    if grid.cells < 2:
        raise UserError(f"masks: a grid of {grid.h}x{grid.w} cells has nothing to hide; use a larger data.crop_px or a smaller model.patch_px")
    return min(max(round(mask.ratio * grid.cells), 1), grid.cells - 1)


def tube_mask(mask: config.TubeMask, grid: TokenGrid, num_clips: int, seed: int, sample: int, mask_index: int) -> TokenMask:
    """Masks of clips number `sample` .. `sample + num_clips - 1` of the run; each is a function of (seed, its number, mask_index).

    Returns context_ids int64 [B, t * (cells - hidden)] and target_ids int64 [B, t * hidden]; together they are the grid.
    """
    hidden = num_hidden_cells(mask, grid)
    rngs = (generator(seed, "masks", (sample + clip << 4) + mask_index) for clip in range(num_clips))
    order = np.stack([_order(mask, grid, hidden, rng) for rng in rngs])
    return TokenMask(_tubes(order[:, hidden:], grid), _tubes(order[:, :hidden], grid))


def _order(mask: config.TubeMask, grid: TokenGrid, hidden: int, rng: np.random.Generator) -> np.ndarray:
    """int [cells]: the cells with those to hide first. Chance breaks ties, so counts are exact without bias to any place."""
    rank = rng.random(grid.cells)
    if mask.num_blocks:
        rank += 1 - _blocks(mask.num_blocks, hidden, grid, rng).reshape(-1)
    return np.argsort(rank, kind="stable")


def _blocks(num_blocks: int, hidden: int, grid: TokenGrid, rng: np.random.Generator) -> np.ndarray:
    """bool [h, w]: the union of rectangles whose expected union is about the cells to hide; wrong by a few, trimmed by `_order`."""
    area = grid.cells * (1 - (1 - hidden / grid.cells) ** (1 / num_blocks))
    covered = np.zeros((grid.h, grid.w), dtype=bool)
    for _ in range(num_blocks):
        aspect = np.exp(rng.uniform(np.log(0.75), np.log(1.5)))
        height = int(np.clip(round(np.sqrt(area * aspect)), 1, grid.h))
        width = int(np.clip(round(area / height), 1, grid.w))
        top, left = rng.integers(grid.h - height + 1), rng.integers(grid.w - width + 1)
        covered[top : top + height, left : left + width] = True
    return covered


def _tubes(cells: np.ndarray, grid: TokenGrid) -> torch.Tensor:
    """int [B, K] cells -> int64 [B, t * K] sorted token ids: every cell at every time."""
    slots = np.arange(grid.t)[None, :, None] * grid.cells
    return torch.from_numpy((slots + np.sort(cells)[:, None, :]).reshape(len(cells), -1).astype(np.int64))
