"""Where a token is: fixed sin-cos embeddings of its place in the token grid."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from vjepa.records import TokenGrid


@lru_cache(maxsize=64)
def sincos_3d(grid: TokenGrid, width: int) -> Tensor:
    """(t h w) -> fp32 [N, width]: sines and cosines of the time slot, the row and the column, side by side.

    Each axis has an equal share of the features, rounded up to a whole sine-cosine pair; the last is cut to the width
    (MAE's 2D table, He et al. 2021, appendix A.1, with a third axis as in V-JEPA section 3.3). Computed in fp64.
    """
    axis_width = 2 * -(-width // 6)
    places = torch.cartesian_prod(*(torch.arange(size, dtype=torch.float64) for size in (grid.t, grid.h, grid.w))).reshape(-1, 3)
    table = torch.cat([_sincos(places[:, axis], axis_width) for axis in range(3)], dim=1)
    return table[:, :width].float()


def _sincos(places: Tensor, width: int) -> Tensor:
    """[N] -> [N, width]: frequencies fall from 1 to 1/10000 (Vaswani et al. 2017, section 3.5)."""
    frequencies = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = places[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)
