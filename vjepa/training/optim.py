"""AdamW and its schedules."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from vjepa import config, schedules


def make_optimizer(
    model: nn.Module, optim: config.Optim, lr_scales: Mapping[str, float] | None = None
) -> torch.optim.AdamW:
    """Make AdamW (Loshchilov & Hutter 2019) over the trained parameters; biases and norm weights are not decayed.

    lr_scales: parameter -> its learning rate over that of the schedule, where it is not 1.
    """
    scales = lr_scales or {}
    members: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for decayed in (True, False):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and (parameter.ndim > 1) is decayed:
                members.setdefault((scales.get(name, 1.0), decayed), []).append(parameter)
    groups = [
        {"params": parameters, "decayed": decayed, "lr_scale": scale, **({} if decayed else {"weight_decay": 0.0})}
        for (scale, decayed), parameters in members.items()
    ]
    return torch.optim.AdamW(groups, lr=optim.peak_lr, betas=optim.betas, fused=True)


def set_schedules(optimizer: torch.optim.Optimizer, optim: config.Optim, step: int, total: int) -> None:
    """Write learning rate and weight decay of this step into the optimizer."""
    lr = schedules.learning_rate(step, total, optim)
    decay = schedules.cosine(step, 0, total, optim.weight_decay, optim.final_weight_decay)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        if group["decayed"]:
            group["weight_decay"] = decay
