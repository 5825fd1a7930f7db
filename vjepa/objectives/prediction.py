"""How far predictions are from targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import Tensor
from torch.nn import functional

# l1: V-JEPA eq. 1; smooth_l1 (Huber with delta 1): I-JEPA's code; mse: I-JEPA eq. 1.
DISTANCES: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "l1": functional.l1_loss,
    "smooth_l1": functional.smooth_l1_loss,
    "mse": functional.mse_loss,
}


def prediction_loss(name: str, predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean distance of predictions to targets, both [B, Kt, D] -> fp32 scalar."""
    return DISTANCES[name](predictions.float(), targets.float())
