"""Features of cells finer than a token: the encoder sees the clip shifted by parts of a patch, and what it says of each
shift is laid together ("shift and stitch", Long et al. 2015, section 3.2). Things keep the size that it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from vjepa.records import TokenGrid

_FINE_CELLS: Final = 32  # a side, about, in which things can be recognised
_MOST: Final = 4  # cells of a token along a side: 16 passes


def fineness(grid: TokenGrid, patch_px: int) -> int:
    """Choose how many cells a token is cut into along each side, so that a frame has about 32 of them."""
    return max(1, min(_MOST, patch_px, round(_FINE_CELLS / min(grid.h, grid.w))))


def cell_features(read: Callable[[Tensor], Tensor], video: Tensor, grid: TokenGrid, fine: int) -> Tensor:
    """Read the features of every cell of clips [B, C, T, H, W]: [B, t, fine * h, fine * w, D], fp32.

    read: clips -> tokens [B, t * h * w, D]. At the borders the outermost pixels are repeated.
    """
    height, width = video.shape[-2:]
    patch = height // grid.h, width // grid.w
    rows, columns = (_offsets(side, fine) for side in patch)
    cells: Tensor | None = None
    for i, down in enumerate(rows):
        for j, right in enumerate(columns):
            tokens = read(shifted(video, down, right)).float().cpu()
            tokens = tokens.reshape(len(video), grid.t, grid.h, grid.w, -1)
            if cells is None:
                cells = tokens.new_empty(len(video), grid.t, fine * grid.h, fine * grid.w, tokens.shape[-1])
            cells[:, :, i::fine, j::fine] = tokens
    if cells is None:
        raise ValueError(f"fine: {fine} is no number of cells")
    return cells


def shifted(video: Tensor, down: int, right: int) -> Tensor:
    """Show what lies `down` and `right` pixels further: [..., H, W], its borders repeated."""
    height, width = video.shape[-2:]
    rows = (torch.arange(height) + down).clamp(0, height - 1)
    columns = (torch.arange(width) + right).clamp(0, width - 1)
    return video[..., rows, :][..., columns]


def _offsets(patch_px: int, fine: int) -> list[int]:
    """Give the shift of each cell of a patch: from the centre of the patch to that of the cell, in whole pixels."""
    return [round((cell + 0.5) * patch_px / fine - patch_px / 2) for cell in range(fine)]
