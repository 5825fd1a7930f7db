"""How far predictions are from targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import Tensor
from torch.nn import functional

from vjepa.objectives.precision import at_least_fp32

# l1: V-JEPA eq. 1; smooth_l1 (Huber with delta 1): I-JEPA's code; huber: Huber 1964; mse: I-JEPA eq. 1.
DISTANCES: Final[dict[str, Callable[..., Tensor]]] = {
    "l1": functional.l1_loss,
    "smooth_l1": functional.smooth_l1_loss,
    "huber": functional.huber_loss,
    "mse": functional.mse_loss,
}


def prediction_loss(
    name: str, predictions: Tensor, targets: Tensor, weights: Tensor | None = None, huber_delta: float = 1.0
) -> Tensor:
    """Average the distance of predictions to targets, both [B, K, D] -> fp32 scalar.

    name: of `DISTANCES`. weights: [B, K], factors of the distance of each token. huber_delta: error up to which `huber`
    is half its square, and beyond which it is delta times the error less delta / 2.
    """
    given = {"delta": huber_delta} if name == "huber" else {}
    predictions, targets = at_least_fp32(predictions), at_least_fp32(targets)
    if weights is None:
        return DISTANCES[name](predictions, targets, **given)
    return (DISTANCES[name](predictions, targets, reduction="none", **given) * weights.unsqueeze(-1)).mean()
