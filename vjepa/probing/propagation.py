"""Label propagation: the masks of the first frame are carried on by features alone, nothing is learned (Jabri et al.
2020, section 3.4, with the settings of DINO, Caron et al. 2021): each cell takes the mean label of the cells before it
that it resembles most.
"""

from __future__ import annotations

from typing import Final

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

SLOTS_BEFORE: Final = 7  # beside the first one
NEIGHBOURS: Final = 5
TEMPERATURE: Final = 0.1
RADIUS_SHARE: Final = 0.25  # of the longer side: how far a thing may have come since an earlier slot


def propagate(features: Tensor, first: Tensor) -> Tensor:
    """Carry labels on: features [t, h, w, D], and shares of kinds in the first slot [h, w, K] -> [t, h, w, K]."""
    t, h, w, _ = features.shape
    unit = rearrange(functional.normalize(features.float(), dim=-1), "t h w d -> t (h w) d")
    far = _too_far(h, w, RADIUS_SHARE * max(h, w))
    labels = [rearrange(first.float(), "h w k -> (h w) k")]
    for slot in range(1, t):
        before = sorted({0, *range(max(0, slot - SLOTS_BEFORE), slot)})
        likeness = torch.stack([unit[slot] @ unit[past].T for past in before])  # [P, cells, cells before]
        likeness = rearrange(likeness.masked_fill(far, -torch.inf), "p i j -> i (p j)")
        best, places = likeness.topk(min(NEIGHBOURS, likeness.shape[1]), dim=1)
        weights = torch.softmax(best / TEMPERATURE, dim=1)
        known = torch.cat([labels[past] for past in before])
        labels.append((weights[..., None] * known[places]).sum(1))
    return rearrange(torch.stack(labels), "t (h w) k -> t h w k", h=h)


def to_pixels(labels: Tensor, num_frames: int, height: int, width: int) -> Tensor:
    """Say which kind each pixel is: shares [t, h, w, K] -> int64 [T, H, W]; a slot stands for all of its frames."""
    enlarged = functional.interpolate(
        rearrange(labels, "t h w k -> t k h w"), size=(height, width), mode="bilinear", align_corners=False
    )
    return enlarged.argmax(1).repeat_interleave(num_frames // len(labels), dim=0)


def _too_far(h: int, w: int, radius: float) -> Tensor:
    """Tell which pairs of cells lie further apart than `radius` along an axis: bool [cells, cells]."""
    y, x = (grid.reshape(-1) for grid in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    apart = torch.maximum((y[:, None] - y).abs(), (x[:, None] - x).abs())
    return apart > radius
