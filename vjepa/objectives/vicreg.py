"""The three terms of VICReg (Bardes et al. 2022). The first is between two branches; the others keep embeddings from
collapsing and need no second.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vjepa.objectives.precision import at_least_fp32


def invariance(predictions: Tensor, targets: Tensor) -> Tensor:
    """Both [B, K, D] -> scalar: mean squared distance of the two branches (eq. 5, divided by D)."""
    return functional.mse_loss(at_least_fp32(predictions), at_least_fp32(targets))


def variance(embeddings: Tensor) -> Tensor:
    """[V, B, D], V views of B clips -> scalar: mean hinge of the standard deviation over clips below 1 (eq. 1)."""
    std = (at_least_fp32(embeddings).var(dim=-2) + 1e-4).sqrt()
    return (1 - std).relu().mean()


def covariance(embeddings: Tensor) -> Tensor:
    """[V, B, D] -> scalar: squared covariances of different features over clips, summed and divided by D (eq. 3), mean
    over views.

    In fp32 whatever autocast says: sums of small products are what bf16 is bad at.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        embeddings = at_least_fp32(embeddings)
        centred = embeddings - embeddings.mean(dim=-2, keepdim=True)
        cov = centred.mT @ centred / (embeddings.shape[-2] - 1)
        off_diagonal = cov.square().sum(dim=(-2, -1)) - cov.diagonal(dim1=-2, dim2=-1).square().sum(dim=-1)
        return (off_diagonal / embeddings.shape[-1]).mean()
