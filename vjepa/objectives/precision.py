"""Losses are computed in fp32, whatever features come in."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_fp32(features: Tensor) -> Tensor:
    """Turn bf16 and fp16 into fp32; fp64 stays, for checks of gradients."""
    return features.to(torch.promote_types(features.dtype, torch.float32))
