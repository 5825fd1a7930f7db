"""The loss on visible tokens of V-JEPA 2.1 (arXiv 2603.14482): what is near a hidden token counts more."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from vjepa.records import TokenGrid, TokenMask


def context_weights(mask: TokenMask, grid: TokenGrid) -> Tensor:
    """Weigh visible tokens, fp32 [B, Kc]: 1 / sqrt of the distance, in tokens, to the nearest hidden one."""
    seen, hidden = (_places(ids, grid) for ids in (mask.context_ids, mask.target_ids))
    return torch.cdist(seen, hidden, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=2).rsqrt()


def _places(ids: Tensor, grid: TokenGrid) -> Tensor:
    """Locate tokens [B, K] -> fp32 [B, K, 3]: time slot, row and column of each."""
    places = torch.stack([ids // grid.cells, ids % grid.cells // grid.w, ids % grid.w])
    return rearrange(places, "three b k -> b k three").float()
