"""AdamW and its schedules."""

from __future__ import annotations

import torch
from torch import nn

from vjepa import config, schedules


def make_optimizer(model: nn.Module, optim: config.Optim) -> torch.optim.AdamW:
    """Make AdamW (Loshchilov & Hutter 2019) over the trained parameters; biases and norm weights are not decayed."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "decayed": True},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "decayed": False, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=optim.peak_lr, betas=optim.betas, fused=True)


def set_schedules(optimizer: torch.optim.Optimizer, optim: config.Optim, step: int, total: int) -> None:
    """Write learning rate and weight decay of this step into the optimizer."""
    lr = schedules.learning_rate(step, total, optim)
    decay = schedules.cosine(step, 0, total, optim.weight_decay, optim.final_weight_decay)
    for group in optimizer.param_groups:
        group["lr"] = lr
        if group["decayed"]:
            group["weight_decay"] = decay
