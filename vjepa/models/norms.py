"""BatchNorm over the clips of all ranks: else what it measures would depend on how many there are."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def has_batch_norms(network: nn.Module) -> bool:
    """Tell whether a network normalises by the batch that it sees."""
    return any(isinstance(layer, _BatchNorm) for layer in network.modules())


def share_batch_norms(network: nn.Module, group: dist.ProcessGroup) -> None:
    """Have every BatchNorm of `network` measure the clips of all ranks of `group`, in place.

    On GPUs it becomes PyTorch's SyncBatchNorm, which a CPU does not have.
    """
    if next(network.parameters()).device.type == "cuda":
        convert_sync_batchnorm(network, group)
        return
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            layer.forward = partial(_shared_forward, layer, group)  # type: ignore[method-assign]


def _shared_forward(layer: Any, group: dist.ProcessGroup, values: Tensor) -> Tensor:
    """Normalise [B, C, ...] by mean and variance over the batches of all ranks (Ioffe and Szegedy 2015, alg. 1)."""
    if not layer.training:
        return type(layer).forward(layer, values)  # type: ignore[no-any-return]
    dims = [dim for dim in range(values.ndim) if dim != 1]
    num = values.numel() // values.shape[1] * dist.get_world_size(group)
    mean = _Summed.apply(values.sum(dims, keepdim=True), group) / num
    centred = values - mean
    variance = _Summed.apply(centred.square().sum(dims, keepdim=True), group) / num
    with torch.no_grad():
        layer.num_batches_tracked += 1
        layer.running_mean.lerp_(mean.flatten(), layer.momentum)
        layer.running_var.lerp_(variance.flatten() * (num / (num - 1)), layer.momentum)
    shape = [-1 if dim == 1 else 1 for dim in range(values.ndim)]
    normed = centred * (variance + layer.eps).rsqrt() * layer.weight.view(shape) + layer.bias.view(shape)
    found: Tensor = layer.act(layer.drop(normed)) if hasattr(layer, "act") else normed  # timm's norm may have both
    return found


class _Summed(torch.autograd.Function):
    """Sum over the ranks of a group, forward and backward."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, summed = group, values.clone()
        dist.all_reduce(summed, group=group)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        summed = gradient.clone()
        dist.all_reduce(summed, group=ctx.group)
        return summed, None
