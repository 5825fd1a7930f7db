"""The moving average that the target encoder is, and target encoders in the precision of matrix products."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from vjepa.models.encoder import Encoder


@torch.no_grad()
def update(target: nn.Module, source: nn.Module, decay: float, skipped: Tensor | None = None) -> None:
    """Set target <- decay * target + (1 - decay) * source, for every parameter (BYOL, Grill et al. 2020, eq. 1).

    Buffers stay: BatchNorm measures its statistics in each of the two, and fixed tables are equal. Of weights that are
    spread over ranks each rank averages its own share.
    skipped: scalar on the device, 1.0 where the step was not taken: then the target stays. None: it was.
    """
    averages, weights = ([local(one) for one in network.parameters()] for network in (target, source))
    if skipped is None:
        skipped = torch.zeros((), device=averages[0].device)
    moved = (1 - skipped) * (1 - decay)
    torch._foreach_lerp_(averages, weights, [moved] * len(averages))


def local(tensor: Tensor) -> Tensor:
    """Give the share of a tensor that this rank holds (a DTensor of PyTorch has one), without a copy."""
    share: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return share


def cast_matrices(encoder: nn.Module, dtype: torch.dtype) -> None:
    """Turn the linear layers of a frozen encoder to `dtype`, for good: so they are not cast in every pass."""
    for layer in encoder.modules():
        if isinstance(layer, nn.Linear):
            layer.to(dtype)


class Shadow:
    """Hold the target encoder as its forward pass wants it: matrices in `dtype`, cast once an update, not every pass.

    The fp32 `average` stays the truth: it is what is updated and saved. In fp32 `encoder` is the target encoder itself.
    Buffers are shared: what BatchNorm measures in a pass of the one is the other's.
    """

    def __init__(self, target: Encoder, dtype: torch.dtype) -> None:
        self.average, self.encoder = target, target
        self.pairs: tuple[list[Tensor], list[Tensor]] = ([], [])
        if dtype is torch.float32:
            return
        self.encoder = copy.deepcopy(target, {id(buffer): buffer for buffer in target.buffers()})
        cast_matrices(self.encoder, dtype)
        copied, average = ([parameter.data for parameter in one.parameters()] for one in (self.encoder, target))
        self.pairs = (copied, average)

    def refresh(self) -> None:
        """Copy the average as it is now."""
        if self.pairs[0]:
            torch._foreach_copy_(*self.pairs)
