"""How far predictions are from targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import Tensor
from torch.nn import functional

# l1: V-JEPA eq. 1; smooth_l1 (Huber with delta 1): I-JEPA's code; mse: I-JEPA eq. 1.
DISTANCES: Final[dict[str, Callable[..., Tensor]]] = {
    "l1": functional.l1_loss,
    "smooth_l1": functional.smooth_l1_loss,
    "mse": functional.mse_loss,
}


def prediction_loss(name: str, predictions: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean distance of predictions to targets, both [B, K, D] -> fp32 scalar; `weights` [B, K] multiply the distance of each token."""
    if weights is None:
        return DISTANCES[name](predictions.float(), targets.float())
    return (DISTANCES[name](predictions.float(), targets.float(), reduction="none") * weights.unsqueeze(-1)).mean()
