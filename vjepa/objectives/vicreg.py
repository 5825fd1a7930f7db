"""The three terms of VICReg (Bardes et al. 2022).

The first is between two branches; the others keep embeddings from collapsing and need no second.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vjepa.objectives.precision import at_least_fp32


def invariance(predictions: Tensor, targets: Tensor) -> Tensor:
    """Average the squared distance of two branches, both [B, K, D] -> scalar (eq. 5, divided by D)."""
    return functional.mse_loss(at_least_fp32(predictions), at_least_fp32(targets))


def variance(embeddings: Tensor) -> Tensor:
    """Average by how much deviations over clips are below 1: [V, B, D], V views of B clips -> scalar (eq. 1)."""
    std = (at_least_fp32(embeddings).var(dim=-2) + 1e-4).sqrt()
    return (1 - std).relu().mean()


def covariance(embeddings: Tensor) -> Tensor:
    """Sum the squared covariances of different features over clips, divided by D: [V, B, D] -> scalar (eq. 3).

    It is the mean over V views. In fp32 whatever autocast says: sums of small products are what bf16 is bad at.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        embeddings = at_least_fp32(embeddings)
        centred = embeddings - embeddings.mean(dim=-2, keepdim=True)
        cov = centred.mT @ centred / (embeddings.shape[-2] - 1)
        off_diagonal = cov.square().sum(dim=(-2, -1)) - cov.diagonal(dim1=-2, dim2=-1).square().sum(dim=-1)
        return (off_diagonal / embeddings.shape[-1]).mean()
