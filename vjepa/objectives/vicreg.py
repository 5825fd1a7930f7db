"""The two terms of VICReg (Bardes et al. 2022) that keep features from collapsing; they need no second view."""

from __future__ import annotations

import torch
from torch import Tensor


def variance(features: Tensor) -> Tensor:
    """[B, D], one row per clip -> scalar: mean hinge of the standard deviation over clips below 1 (eq. 1)."""
    std = (features.float().var(dim=0) + 1e-4).sqrt()
    return (1 - std).relu().mean()


def covariance(features: Tensor) -> Tensor:
    """[B, D] -> scalar: squared covariances of different features over clips, summed and divided by D (eq. 3).

    In fp32 whatever autocast says: sums of small products are what bf16 is bad at.
    """
    with torch.autocast(features.device.type, enabled=False):
        centred = features.float() - features.float().mean(dim=0)
        cov = centred.T @ centred / (len(features) - 1)
        return (cov.square().sum() - cov.diagonal().square().sum()) / features.shape[1]
